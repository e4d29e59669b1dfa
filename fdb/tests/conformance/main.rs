//! What every engine must do, FoundationDB's own included: each test runs against each engine that is compiled in
//! (see `engine.rs`). Nothing here knows which engine it talks to.

mod api;
mod conflicts;
mod engine;
mod limits;
mod model;
mod watches;
