{{ config(
    incremental_strategy='append',
    pre_hook="{{ forget_what_changed('int_symbology__derived', ['listing_id', 'valid_from', 'known_from']) }}"
) }}

{{ what_changed('int_symbology__derived') }}
