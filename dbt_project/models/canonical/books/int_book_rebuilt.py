def model(dbt, session):
    """All that new records change of the order books: market_data/book_builds.py draws how."""
    from market_data import book_builds

    dbt.ref("int_book_updates__versioned")
    dbt.ref("int_book_losses__versioned")
    dbt.ref("feeds")
    dbt.ref("books")
    return session.from_arrow(book_builds.rebuild(session))
