//! Numbers out of a fuzzer's input, until it ends.

pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Input(data)
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Up to `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }
    /// What the input lacks is 0.
    fn padded<const N: usize>(&mut self) -> [u8; N] {
        let mut padded = [0; N];
        let taken = self.bytes(N);
        padded[..taken.len()].copy_from_slice(taken);
        padded
    }
    pub(crate) fn u8(&mut self) -> u8 {
        self.padded::<1>()[0]
    }
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.padded())
    }
    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.padded())
    }
    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.padded())
    }
}
