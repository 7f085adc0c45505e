pub mod around;
