//! Hashes of passwords by bcrypt (Provos and Mazières, "A Future-Adaptable Password Scheme", 1999), as
//! htpasswd files and other registries have them.
//!
//! Invariant: one that is taken costs no more than [`COST_MAX`], whoever made it.
//! Non-goal: making any. What was right once is kept by argon2id from then on; see `password`.

use std::sync::LazyLock;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use zeroize::Zeroizing;

/// Doublings of the work.
pub const COST_MIN: u32 = 4;
/// A quarter of a second: so that a wrong password is answered at the same moment as one for an account
/// without such a hash (see `WRONG_BEAT`).
pub const COST_MAX: u32 = 12;

const KINDS: [&str; 3] = ["$2a$", "$2b$", "$2y$"];
/// Of a hash, all in all, and of its salt as it is written.
const TEXT_BYTES: usize = 60;
const SALT_CHARS: usize = 22;
const SALT_BYTES: usize = 16;
/// The last byte of what is encrypted is left out.
const SUM_BYTES: usize = 23;
/// Of a password; what comes behind does not count.
const KEY_BYTES_MAX: usize = 72;
const ENCODING: GeneralPurpose =
    GeneralPurpose::new(&alphabet::BCRYPT, NO_PAD.with_decode_allow_trailing_bits(true));

const ROUNDS: usize = 16;
/// Words of Blowfish's key: one for each round and two for the end; and of its boxes.
const PARTS: usize = ROUNDS + 2;
const BOXES: usize = 4 * 256;
/// What is encrypted, and how often.
const TEXT: &[u8; 24] = b"OrpheanBeholderScryDoubt";
const ENCRYPTIONS: usize = 64;

/// A hash that a password can be compared with.
#[derive(Debug)]
pub struct Hash {
    cost: u32,
    salt: [u8; SALT_BYTES],
    sum: [u8; SUM_BYTES],
}

impl Hash {
    /// Of its text; nothing where that is none, or one that costs too much.
    pub fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let rest = KINDS.iter().find_map(|kind| text.strip_prefix(kind))?;
        let (cost, rest) = rest.split_once('$')?;
        if text.len() != TEXT_BYTES || cost.len() != 2 || !rest.is_ascii() {
            return None;
        }
        let cost =
            cost.bytes().all(|digit| digit.is_ascii_digit()).then(|| cost.parse().ok())??;
        let (salt, sum) = rest.split_at_checked(SALT_CHARS)?;
        let hash = Self {
            cost,
            salt: ENCODING.decode(salt).ok()?.try_into().ok()?,
            sum: ENCODING.decode(sum).ok()?.try_into().ok()?,
        };
        (COST_MIN..=COST_MAX).contains(&cost).then_some(hash)
    }

    /// Whether it is of this password. It takes as long where it is not.
    pub fn is_of(&self, password: &[u8]) -> bool {
        // Where hashes are made by C programs, a password ends there.
        if password.contains(&0) {
            return false;
        }
        let ended = password.iter().copied().chain([0]).take(KEY_BYTES_MAX);
        let ended: Zeroizing<Vec<u8>> = Zeroizing::new(ended.collect());
        let key: Zeroizing<[u32; PARTS]> = Zeroizing::new(words(&ended));
        let mut cipher = Cipher::new();
        cipher.expand(&key, words(&self.salt));
        let salt = words(&self.salt);
        for _ in 0..1_u32 << self.cost {
            cipher.expand(&key, [0; 4]);
            cipher.expand(&salt, [0; 4]);
        }
        let mut sum = Vec::with_capacity(TEXT.len());
        let text: [u32; 6] = words(TEXT);
        for pair in text.chunks_exact(2) {
            let mut block = [pair[0], pair[1]];
            for _ in 0..ENCRYPTIONS {
                block = cipher.encrypt(block);
            }
            sum.extend(block.into_iter().flat_map(u32::to_be_bytes));
        }
        verify_slices_are_equal(&sum[..SUM_BYTES], &self.sum).is_ok()
    }
}

/// Makes what the first comparison would have to wait for.
pub fn prepare() {
    LazyLock::force(&PI);
}

/// The bytes, again and again, as words.
fn words<const COUNT: usize>(bytes: &[u8]) -> [u32; COUNT] {
    let mut bytes = bytes.iter().cycle();
    let mut next = || u32::from(bytes.next().copied().unwrap_or(0));
    std::array::from_fn(|_| (0..4).fold(0, |word, _| (word << 8) | next()))
}

/// Blowfish (Schneier, 1993), whose key is mixed in slowly.
struct Cipher {
    parts: [u32; PARTS],
    boxes: [u32; BOXES],
}

impl Cipher {
    fn new() -> Self {
        let mut cipher = Self { parts: [0; PARTS], boxes: [0; BOXES] };
        cipher.parts.copy_from_slice(&PI[..PARTS]);
        cipher.boxes.copy_from_slice(&PI[PARTS..]);
        cipher
    }

    fn expand(&mut self, key: &[u32; PARTS], salt: [u32; 4]) {
        for (part, word) in self.parts.iter_mut().zip(key) {
            *part ^= word;
        }
        let mut block = [0; 2];
        for at in (0..PARTS + BOXES).step_by(2) {
            block = self.encrypt([block[0] ^ salt[at % 4], block[1] ^ salt[(at + 1) % 4]]);
            let place = match at.checked_sub(PARTS) {
                None => &mut self.parts[at..at + 2],
                Some(at) => &mut self.boxes[at..at + 2],
            };
            place.copy_from_slice(&block);
        }
    }

    fn encrypt(&self, [mut left, mut right]: [u32; 2]) -> [u32; 2] {
        for pair in self.parts[..ROUNDS].chunks_exact(2) {
            left ^= pair[0];
            right ^= self.mixed(left) ^ pair[1];
            left ^= self.mixed(right);
        }
        [right ^ self.parts[ROUNDS + 1], left ^ self.parts[ROUNDS]]
    }

    fn mixed(&self, word: u32) -> u32 {
        let [a, b, c, d] = word.to_be_bytes().map(usize::from);
        let (a, b) = (self.boxes[a], self.boxes[256 + b]);
        let (c, d) = (self.boxes[512 + c], self.boxes[768 + d]);
        (a.wrapping_add(b) ^ c).wrapping_add(d)
    }
}

/// What Blowfish begins with: the digits of π behind the point. Machin's formula gives them: 16 times
/// the arctangent of 1/5, less 4 times that of 1/239.
static PI: LazyLock<Vec<u32>> = LazyLock::new(|| {
    /// For what each of the nine thousand terms is rounded by.
    const GUARD: usize = 2;
    let mut sum = vec![0; 1 + PARTS + BOXES + GUARD];
    add_arctangent(&mut sum, 16, 5, true);
    add_arctangent(&mut sum, 4, 239, false);
    sum[1..=PARTS + BOXES].to_vec()
});

/// Adds so many times the arctangent of 1/`of`, or takes it away. A number's first word is before the
/// point.
fn add_arctangent(sum: &mut [u32], times: u32, of: u32, mut adds: bool) {
    let mut power = vec![0; sum.len()];
    power[0] = times;
    divide(&mut power, of);
    let mut divisor = 1;
    while power.iter().any(|word| *word != 0) {
        let mut term = power.clone();
        divide(&mut term, divisor);
        accumulate(sum, &term, adds);
        divide(&mut power, of * of);
        divisor += 2;
        adds = !adds;
    }
}

fn divide(number: &mut [u32], by: u32) {
    let mut rest = 0;
    for word in number {
        let whole = (rest << 32) | u64::from(*word);
        *word = (whole / u64::from(by)) as u32;
        rest = whole % u64::from(by);
    }
}

fn accumulate(sum: &mut [u32], term: &[u32], adds: bool) {
    let step = if adds { u32::overflowing_add } else { u32::overflowing_sub };
    let mut carry = false;
    for (word, other) in sum.iter_mut().zip(term).rev() {
        let (next, over) = step(*word, *other);
        let (next, again) = step(next, u32::from(carry));
        (*word, carry) = (next, over | again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_of(hash: &str, password: &str) -> bool {
        Hash::read(hash.as_bytes()).expect(hash).is_of(password.as_bytes())
    }

    #[test]
    fn the_digits_of_pi_are_those_of_the_cipher() {
        assert_eq!(PI.len(), PARTS + BOXES);
        // The first and last of the key, of the first box, and of the last one (Schneier, 1993).
        let found = [PI[0], PI[1], PI[PARTS - 1], PI[PARTS], PI[PARTS + BOXES - 1]];
        assert_eq!(found, [0x243f_6a88, 0x85a3_08d3, 0x8979_fb1b, 0xd131_0ba6, 0x3ac3_72e6]);
    }

    #[test]
    fn hashes_of_crypt_are_of_their_passwords_and_no_others() {
        // The first four are Openwall's; all are what crypt(3) gives.
        let long = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        let longer = format!("{long}chars after 72 are ignored");
        for (hash, password) in [
            ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U"),
            ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy", ""),
            ("$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a", "U*U*U"),
            ("$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui", longer.as_str()),
            ("$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui", long),
            ("$2y$04$abcdefghijklmnopqrstuuSQyLzxZtaUFpi/q2P5wWap0qvqIvC5q", "correct-horse-7"),
            ("$2b$06$......................J0YSh3C1X2JZKP405sf0qVQxKeX60XS", "ärger und 密码"),
        ] {
            assert!(is_of(hash, password), "{hash} {password}");
            let mut others = vec![format!("{password}\0"), password.to_uppercase() + "1"];
            others.push(password.chars().skip(1).collect::<String>() + "x");
            for other in others {
                assert!(!is_of(hash, &other), "{hash} {other}");
            }
        }
    }

    #[test]
    fn what_is_no_hash_or_costs_too_much_is_not_taken() {
        let good = "$2y$04$abcdefghijklmnopqrstuuSQyLzxZtaUFpi/q2P5wWap0qvqIvC5q";
        assert!(Hash::read(good.as_bytes()).is_some());
        for bad in [
            good.replacen("$04$", "$03$", 1),
            good.replacen("$04$", "$13$", 1),
            good.replacen("$04$", "$+4$", 1),
            good.replacen("$2y$", "$2x$", 1),
            good.replacen("$2y$", "$1$$", 1),
            good.replace('q', "="),
            format!("{good}a"),
            good[..59].to_owned(),
            good.replacen("ab", "ä", 1),
            "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA".to_owned(),
            String::new(),
            "!".to_owned(),
        ] {
            assert!(Hash::read(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
