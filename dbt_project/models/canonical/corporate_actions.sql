{{ shown_versions('int_corporate_actions__versioned') }}
