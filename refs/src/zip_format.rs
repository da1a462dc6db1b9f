//! Records of the zip format (PKWARE APPNOTE 6.3.10), for the reader, the writer and error messages.

/// Signatures of records, little endian.
pub(crate) const LOCAL: u32 = 0x0403_4b50;
pub(crate) const CENTRAL: u32 = 0x0201_4b50;
pub(crate) const END: u32 = 0x0605_4b50;
pub(crate) const END_64: u32 = 0x0606_4b50;
pub(crate) const LOCATOR_64: u32 = 0x0706_4b50;
/// Size of the end record without the comment, bytes.
pub(crate) const END_SIZE: usize = 22;
/// Longest comment of an archive, bytes.
const MAX_COMMENT: usize = 0xffff;
/// Length of the end of a file in which the end record begins.
pub(crate) const END_WINDOW: u64 = (END_SIZE + MAX_COMMENT) as u64;
