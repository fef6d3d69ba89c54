//! The bytes of a sealed object.
//!
//! Layout: a header of [`HEADER_BYTES`] – [`MAGIC`], whose last byte is the version; the id of the
//! data key (16 bytes); the header's keyed BLAKE3 (32) – then segments: a nonce (12), the ciphertext
//! of [`SEGMENT_BYTES`] of content, the last one's of as many as there are, and the tag (16) of
//! AES-256-GCM. The segment's number, from 0, is authenticated with it. There is no segment without
//! content.
//!
//! An object has a secret of its own, derived from the data key and the object's key in storage; so
//! a segment opens at its own place of its own object only. What is missing at the end shows in the
//! length alone: parts come in any order, and none knows that it is the last. Whoever reads knows
//! the length from its row, or compares all with a hash.
//!
//! A nonce is the keyed BLAKE3 of the segment's number and content. So nobody has to count or to
//! remember: other content has another nonce, and the same content becomes the same bytes, though
//! two nodes write one part at the same time, or an object is stored again that somebody has read a
//! part of.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::{Buf, Bytes, BytesMut};
use shoal_content::{DataKeyId, ObjectKey};
use zeroize::Zeroizing;

pub const KEY_BYTES: usize = 32;
/// A data key, or an object's own.
pub type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

const MAGIC: [u8; 8] = *b"\x93shoal\n\x01";
const ID_BYTES: usize = 16;
const MAC_BYTES: usize = 32;
pub const HEADER_BYTES: u64 = (MAGIC.len() + ID_BYTES + MAC_BYTES) as u64;
/// Content of a segment.
pub const SEGMENT_BYTES: u64 = 64 * 1024;
const TAG_BYTES: usize = 16;
const ADDED_BYTES: u64 = (NONCE_LEN + TAG_BYTES) as u64;
/// A segment that is not the last, as it is stored.
pub const SEALED_SEGMENT_BYTES: u64 = SEGMENT_BYTES + ADDED_BYTES;

const OBJECT_PURPOSE: &str = "shoal 2026-11 secret of a sealed object";
const CIPHER_PURPOSE: &str = "shoal 2026-11 cipher of a sealed object";
const NONCE_PURPOSE: &str = "shoal 2026-11 nonces of a sealed object";
const HEADER_PURPOSE: &str = "shoal 2026-11 header of a sealed object";

/// How long `content_bytes` are when they are sealed, without a header.
pub const fn sealed_bytes(content_bytes: u64) -> u64 {
    content_bytes + content_bytes.div_ceil(SEGMENT_BYTES) * ADDED_BYTES
}

/// The content of an object that is `stored_bytes` long; what was torn off may leave a rest without
/// any.
pub const fn content_bytes(stored_bytes: u64) -> u64 {
    let segments = stored_bytes.saturating_sub(HEADER_BYTES);
    let (whole, rest) = (segments / SEALED_SEGMENT_BYTES, segments % SEALED_SEGMENT_BYTES);
    whole * SEGMENT_BYTES + rest.saturating_sub(ADDED_BYTES)
}

/// What an object begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub key: DataKeyId,
    mac: [u8; MAC_BYTES],
}

impl Header {
    /// Nothing where these are the first bytes of something else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (id, mac) = bytes.strip_prefix(&MAGIC)?.split_at_checked(ID_BYTES)?;
        let key = DataKeyId::from_bytes(id.try_into().ok()?);
        Some(Self { key, mac: mac.try_into().ok()? })
    }
}

/// The segment or header is not what was sealed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// An object's own secret.
pub struct ObjectSecret {
    bytes: KeyBytes,
    cipher: LessSafeKey,
    nonces: KeyBytes,
}

impl std::fmt::Debug for ObjectSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectSecret(…)")
    }
}

impl ObjectSecret {
    pub fn derive(data_key: &KeyBytes, object: ObjectKey) -> Self {
        // The first part has a fixed length, so no two pairs are the same bytes.
        let material = Zeroizing::new([&data_key[..], object.to_string().as_bytes()].concat());
        Self::from_bytes(Zeroizing::new(blake3::derive_key(OBJECT_PURPOSE, &material)))
    }

    pub fn from_bytes(bytes: KeyBytes) -> Self {
        let derived = |purpose| Zeroizing::new(blake3::derive_key(purpose, &bytes[..]));
        let cipher = UnboundKey::new(&AES_256_GCM, &derived(CIPHER_PURPOSE)[..]);
        let cipher = LessSafeKey::new(cipher.expect("a key of AES-256 has 32 bytes"));
        let nonces = derived(NONCE_PURPOSE);
        Self { bytes, cipher, nonces }
    }

    /// What another data key may seal, so that it opens the object.
    pub fn as_bytes(&self) -> &KeyBytes {
        &self.bytes
    }

    fn mac(&self, key: DataKeyId) -> blake3::Hash {
        let by = Zeroizing::new(blake3::derive_key(HEADER_PURPOSE, &self.bytes[..]));
        blake3::keyed_hash(&by, &[&MAGIC[..], key.as_uuid().as_bytes()].concat())
    }

    /// Whether the header was made with this secret.
    pub fn made(&self, header: &Header) -> bool {
        // It compares in constant time.
        self.mac(header.key) == header.mac
    }

    fn nonce(&self, segment: u64, content: &[u8]) -> [u8; NONCE_LEN] {
        let mut hash = blake3::Hasher::new_keyed(&self.nonces);
        hash.update(&segment.to_be_bytes()).update(content);
        let mut nonce = [0; NONCE_LEN];
        hash.finalize_xof().fill(&mut nonce);
        nonce
    }

    /// Content that starts `offset` bytes into its object, at a segment's start, as it is stored;
    /// the object's first bytes come with its header.
    pub fn seal(&self, key: DataKeyId, offset: u64, content: &[u8]) -> Vec<u8> {
        let header = if offset == 0 { HEADER_BYTES } else { 0 };
        let length = header + sealed_bytes(content.len() as u64);
        let mut sealed = Vec::with_capacity(length as usize);
        if offset == 0 {
            sealed.extend_from_slice(&MAGIC);
            sealed.extend_from_slice(key.as_uuid().as_bytes());
            sealed.extend_from_slice(self.mac(key).as_bytes());
        }
        let first = offset / SEGMENT_BYTES;
        for (number, segment) in (first..).zip(content.chunks(SEGMENT_BYTES as usize)) {
            let nonce = self.nonce(number, segment);
            sealed.extend_from_slice(&nonce);
            let start = sealed.len();
            sealed.extend_from_slice(segment);
            let (nonce, aad) = (Nonce::from(&nonce), Aad::from(number.to_be_bytes()));
            let tag = self.cipher.seal_in_place_separate_tag(nonce, aad, &mut sealed[start..]);
            // It refuses what is longer than 64 GiB, and a segment is not.
            sealed.extend_from_slice(tag.expect("a segment can be sealed").as_ref());
        }
        sealed
    }

    /// # Errors
    /// Where it is not what was sealed as the segment of this number.
    pub fn open(&self, number: u64, mut segment: BytesMut) -> Result<Bytes, Broken> {
        let nonce = segment.get(..NONCE_LEN).ok_or(Broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Broken)?;
        segment.advance(NONCE_LEN);
        let aad = Aad::from(number.to_be_bytes());
        let opened = self.cipher.open_in_place(nonce, aad, &mut segment).map_err(|_| Broken)?;
        let length = opened.len();
        segment.truncate(length);
        Ok(segment.freeze())
    }
}

/// Seals one short secret with another, for one purpose.
pub fn wrap(key: &KeyBytes, purpose: &[u8], secret: &[u8]) -> Vec<u8> {
    let cipher = aws_lc_rs::aead::RandomizedNonceKey::new(&AES_256_GCM, &key[..]);
    let mut sealed = secret.to_vec();
    let nonce = cipher
        .and_then(|cipher| cipher.seal_in_place_append_tag(Aad::from(purpose), &mut sealed))
        .expect("a short secret can be sealed");
    [nonce.as_ref().as_slice(), &sealed].concat()
}

/// Nothing where it is not what was wrapped for that purpose with that key.
pub fn unwrap(key: &KeyBytes, purpose: &[u8], wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).ok()?);
    let mut secret = Zeroizing::new(sealed.to_vec());
    let length = cipher.open_in_place(nonce, Aad::from(purpose), &mut secret).ok()?.len();
    secret.truncate(length);
    Some(secret)
}

#[cfg(test)]
mod tests {
    use shoal_content::{PackId, UploadId};
    use uuid::Uuid;

    use super::*;

    const SEGMENT: usize = SEGMENT_BYTES as usize;
    const SEALED: usize = SEALED_SEGMENT_BYTES as usize;

    fn id(number: u128) -> DataKeyId {
        DataKeyId::from_uuid(Uuid::from_u128(number))
    }

    fn secret(key: u8, object: &[u8]) -> ObjectSecret {
        ObjectSecret::derive(&Zeroizing::new([key; 32]), ObjectKey::Pack(PackId::of(object)))
    }

    fn segment(sealed: &[u8], number: usize) -> BytesMut {
        let start = HEADER_BYTES as usize + number * SEALED;
        BytesMut::from(&sealed[start..sealed.len().min(start + SEALED)])
    }

    #[test]
    fn lengths_lead_both_ways_and_some_are_of_nothing() {
        for bytes in [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 5 * SEGMENT_BYTES]
        {
            let content = vec![7; bytes as usize];
            let sealed = secret(1, b"a").seal(id(1), 0, &content).len() as u64;
            assert_eq!(sealed, HEADER_BYTES + sealed_bytes(bytes));
            assert_eq!(content_bytes(sealed), bytes);
        }
        for stored in [0, HEADER_BYTES - 1, HEADER_BYTES + 1, HEADER_BYTES + ADDED_BYTES] {
            assert_eq!(content_bytes(stored), 0);
        }
    }

    #[test]
    fn a_segment_opens_at_its_own_place_of_its_own_object_with_its_own_key() {
        let content: Vec<u8> = (0..2 * SEGMENT + 9).map(|at| (at / 11) as u8).collect();
        let ours = secret(1, b"a");
        let sealed = ours.seal(id(1), 0, &content);
        for number in 0..3 {
            let end = content.len().min((number + 1) * SEGMENT);
            let opened = ours.open(number as u64, segment(&sealed, number)).unwrap();
            assert_eq!(opened, content[number * SEGMENT..end]);
            assert_eq!(ours.open(number as u64 + 1, segment(&sealed, number)), Err(Broken));
        }
        assert_eq!(secret(1, b"b").open(0, segment(&sealed, 0)), Err(Broken), "another object");
        assert_eq!(secret(2, b"a").open(0, segment(&sealed, 0)), Err(Broken), "another key");
        let mut damaged = segment(&sealed, 0);
        damaged[SEGMENT / 2] ^= 1;
        assert_eq!(ours.open(0, damaged), Err(Broken));
        let mut short = segment(&sealed, 2);
        short.truncate(short.len() - 1);
        assert_eq!(ours.open(2, short), Err(Broken));
        assert_eq!(ours.open(0, BytesMut::new()), Err(Broken));
    }

    #[test]
    fn parts_are_the_whole_in_pieces_and_the_same_whenever_they_are_sealed() {
        let content: Vec<u8> = (0..3 * SEGMENT + 1).map(|at| (at / 5) as u8).collect();
        let ours = secret(1, b"a");
        let whole = ours.seal(id(1), 0, &content);
        let (first, rest) = content.split_at(2 * SEGMENT);
        let last = ours.seal(id(1), 2 * SEGMENT_BYTES, rest);
        assert_eq!([ours.seal(id(1), 0, first), last].concat(), whole);
        let other = ours.seal(id(1), 0, &[&[9], &content[1..]].concat());
        let nonce = |sealed: &[u8]| sealed[HEADER_BYTES as usize..][..NONCE_LEN].to_vec();
        assert_ne!(nonce(&other), nonce(&whole), "other content with the same nonce");
    }

    #[test]
    fn a_header_is_its_objects_own() {
        let ours = secret(1, b"a");
        let sealed = ours.seal(id(7), 0, b"content");
        let header = Header::parse(&sealed[..HEADER_BYTES as usize]).unwrap();
        assert_eq!(header.key, id(7));
        assert!(ours.made(&header));
        assert!(!secret(1, b"b").made(&header) && !secret(2, b"a").made(&header));
        let mut other = sealed.clone();
        other[MAGIC.len()] ^= 1;
        let other = Header::parse(&other[..HEADER_BYTES as usize]).unwrap();
        assert!(!ours.made(&other), "another id under the same code");
        assert_eq!(Header::parse(&sealed[1..=HEADER_BYTES as usize]), None);
        assert_eq!(Header::parse(&sealed[..20]), None);
    }

    #[test]
    fn what_is_wrapped_opens_for_its_purpose_only() {
        let (key, other) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
        let wrapped = wrap(&key, b"one", b"secret");
        assert_eq!(unwrap(&key, b"one", &wrapped).unwrap()[..], *b"secret");
        assert!(unwrap(&key, b"two", &wrapped).is_none());
        assert!(unwrap(&other, b"one", &wrapped).is_none());
        assert!(unwrap(&key, b"one", &wrapped[..11]).is_none());
        assert_ne!(wrap(&key, b"one", b"secret"), wrapped, "a nonce twice");
    }

    #[test]
    fn a_secret_follows_from_the_key_and_the_object() {
        let key = Zeroizing::new([1; 32]);
        let blob = ObjectKey::Blob(UploadId::from_uuid(Uuid::from_u128(5)));
        let secret = ObjectSecret::derive(&key, blob);
        let again = ObjectSecret::from_bytes(secret.as_bytes().clone());
        assert_eq!(secret.seal(id(1), 0, b"content"), again.seal(id(1), 0, b"content"));
    }
}
