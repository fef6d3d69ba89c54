//! Finds bytes that are all zero, many at a time.
//!
//! Invariant: no loop here looks at one byte per step.
//! Non-goal: holes in files, which are the source's to know.

/// Bytes compared at a time; the compiler makes vector instructions of one step.
const STEP_BYTES: usize = 64;

/// Whether all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (steps, rest) = bytes.as_chunks::<STEP_BYTES>();
    let step_is_zero = |step: &[u8; STEP_BYTES]| {
        let (words, _) = step.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    };
    steps.iter().all(step_is_zero) && rest.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_single_bit_anywhere() {
        for length in [0, 1, 63, 64, 65, 4096, 4100] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes));
                bytes[at] = 0;
            }
        }
    }
}
