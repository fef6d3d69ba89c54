//! Adler-32 (RFC 1950), which ends every zlib stream.
//!
//! Invariant: the sums are reduced before they can leave 32 bits.

const MODULUS: u32 = 65_521;
/// The most bytes that can be added before a reduction.
const BYTES_MAX: usize = 5552;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adler32 {
    a: u32,
    b: u32,
}

impl Default for Adler32 {
    fn default() -> Self {
        Self { a: 1, b: 0 }
    }
}

impl Adler32 {
    pub fn update(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(BYTES_MAX) {
            for &byte in part {
                self.a += u32::from(byte);
                self.b += self.a;
            }
            self.a %= MODULUS;
            self.b %= MODULUS;
        }
    }

    /// As many zero bytes as `count`.
    pub fn zeros(&mut self, count: u64) {
        let count = (count % u64::from(MODULUS)) as u32;
        self.b =
            (self.b + (u64::from(self.a) * u64::from(count) % u64::from(MODULUS)) as u32) % MODULUS;
    }

    /// As it stands in a stream.
    pub fn to_bytes(self) -> [u8; 4] {
        ((self.b << 16) | self.a).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard_and_with_itself() {
        let mut sum = Adler32::default();
        sum.update(b"Wikipedia");
        assert_eq!(sum.to_bytes(), 0x11e6_0398_u32.to_be_bytes());
        let (mut fast, mut slow) = (sum, sum);
        fast.zeros(300_000);
        slow.update(&vec![0; 300_000]);
        assert_eq!(fast, slow);
        slow.update(&vec![255; 70_000]);
        assert!(slow.a < MODULUS && slow.b < MODULUS);
    }
}
