{{ shown_versions('int_bars__versioned') }}
