{{ shown_versions('int_book_updates__versioned') }}
