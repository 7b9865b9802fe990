{{ config(meta={'feed': 'massive_day_aggs'}) }}

{{ massive_aggregates('massive_day_aggs', '1d') }}
