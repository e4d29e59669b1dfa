//! clever
