{{ config(
    incremental_strategy='append',
    pre_hook="{{ forget_what_changed('int_instruments__derived', ['instrument_id', 'known_from']) }}"
) }}

{{ what_changed('int_instruments__derived') }}
