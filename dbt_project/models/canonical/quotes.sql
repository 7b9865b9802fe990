{{ shown_versions('int_quotes__versioned') }}
