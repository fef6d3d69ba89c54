//! skeleton
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub offset: u64,
    pub length: u32,
}
#[derive(Debug)]
pub struct Cutter;
