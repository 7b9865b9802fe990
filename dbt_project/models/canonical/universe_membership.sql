{{ shown_versions('int_universe_membership__versioned') }}
