{#- The currency that a listing is priced in, from the venue's spelling. -#}
{% macro currency_of(venue, symbol) -%}
    case {{ venue }}
        when 'us_equities' then 'USD'
        when 'coinbase' then split_part({{ symbol }}, '-', 2)
        when 'binance' then case
            -- ADAEUR is ADA in EUR, and SHIBIDR is SHIB in IDR.
            when {{ symbol }} in ('BTCAEUR', 'ETHAEUR', 'EURAEUR') then 'AEUR'
            when {{ symbol }} in ('BNBIDR', 'SHIBIDR') then 'IDR'
            else nullif(
                regexp_extract({{ symbol }}, '(USDT|USDC|FDUSD|TUSD|BUSD|DAI|BTC|ETH|BNB|EUR|GBP|TRY|BRL|JPY|AUD|ARS|UAH|ZAR|PLN|RON|BIDR|IDR|MXN|COP|CZK|NGN|RUB|TRX|XRP|DOGE|SOL|DOT)$', 1), ''
            )
        end
    end
{%- endmacro %}

{#- What is traded, where a listing is a pair: what stands before the currency. -#}
{% macro base_currency_of(venue, symbol) -%}
    case {{ venue }}
        when 'coinbase' then split_part({{ symbol }}, '-', 1)
        when 'binance' then nullif(left({{ symbol }}, length({{ symbol }}) - length({{ currency_of(venue, symbol) }})), '')
    end
{%- endmacro %}
