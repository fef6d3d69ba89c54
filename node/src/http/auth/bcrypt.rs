//! Hashes of passwords by bcrypt (Provos and Mazières, "A Future-Adaptable Password Scheme", 1999), as
//! htpasswd files and other registries have them.
//!
//! Invariant: one that is taken costs no more than [`COST_MAX`], whoever made it.
//! Non-goal: making any. What was right once is kept by argon2id from then on; see `password`.

use bcrypt::HashParts;

/// Doublings of the work.
pub const COST_MIN: u32 = 4;
/// A quarter of a second: so that a wrong password is answered at the same moment as one for an account
/// without such a hash (see `WRONG_BEAT`).
pub const COST_MAX: u32 = 12;

/// Of a password; what comes behind does not count.
pub const PASSWORD_BYTES_MAX: usize = 72;

/// `$2x$` marks hashes of a program that got them wrong.
const KINDS: [&str; 3] = ["$2a$", "$2b$", "$2y$"];

/// A hash that a password can be compared with.
#[derive(Debug)]
pub struct Hash<'text>(&'text str);

impl<'text> Hash<'text> {
    /// Of its text; nothing where that is none, or one that costs too much.
    pub fn read(text: &'text [u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?;
        let cost = KINDS.iter().find_map(|kind| text.strip_prefix(kind))?.get(..2)?;
        let parts: HashParts = text.parse().ok()?;
        let is_taken = cost.bytes().all(|digit| digit.is_ascii_digit())
            && (COST_MIN..=COST_MAX).contains(&parts.get_cost());
        is_taken.then_some(Self(text))
    }

    /// Whether it is of this password. It takes as long where it is not.
    pub fn is_of(&self, password: &[u8]) -> bool {
        // Where hashes are made by C programs, a password ends there.
        !password.contains(&0) && bcrypt::verify(password, self.0).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_of(hash: &str, password: &str) -> bool {
        Hash::read(hash.as_bytes()).expect(hash).is_of(password.as_bytes())
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
