//! The system's store against real files and real databases.

mod databases;
mod sharing;
mod trees;
