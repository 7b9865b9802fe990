{{ config(meta={'feed': 'massive_minute_aggs'}) }}

{{ massive_aggregates('massive_minute_aggs', '1m') }}
