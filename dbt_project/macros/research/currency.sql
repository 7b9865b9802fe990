{#- The currency that a listing is priced in, from the venue's spelling. -#}
{% macro currency_of(venue, symbol) -%}
    case {{ venue }}
        when 'us_equities' then 'USD'
        when 'coinbase' then split_part({{ symbol }}, '-', 2)
        when 'binance' then nullif(
            regexp_extract({{ symbol }}, '(USDT|USDC|FDUSD|TUSD|BUSD|DAI|BTC|ETH|BNB|EUR|GBP|TRY|BRL|JPY|AUD|ARS|UAH|ZAR|PLN|RON|IDR|MXN|COP|CZK|NGN|RUB|TRX|XRP|DOGE|SOL|DOT)$', 1), ''
        )
    end
{%- endmacro %}
