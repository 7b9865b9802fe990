{{ shown_versions('int_macro_observations__versioned') }}
