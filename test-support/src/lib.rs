//! Named tolerances, fixtures and the command-line harness of d2o's tests.
