//! Byte strings that are checked when they are read: exact or bounded lengths, valid PCR masks.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteArray, ByteBuf};
use sha2::{Digest as _, Sha256};

macro_rules! exact_bytes {
    ($(#[$doc:meta])* $name:ident, $length:literal, $shown:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(ByteArray<$length>);

        impl $name {
            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }
        }

        impl From<[u8; $length]> for $name {
            fn from(bytes: [u8; $length]) -> Self {
                Self(ByteArray::new(bytes))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = std::array::TryFromSliceError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                <[u8; $length]>::try_from(bytes).map(Self::from)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let show: fn(&[u8], &mut fmt::Formatter<'_>) -> fmt::Result = $shown;
                write!(f, "{}(", stringify!($name))?;
                show(self.as_bytes(), f)?;
                f.write_str(")")
            }
        }
    };
}

fn shown(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn hidden(_: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("..")
}

exact_bytes!(
    /// A challenge of the verifier, 16 bytes as Keylime makes them. Never shown.
    Nonce, 16, hidden
);
exact_bytes!(
    /// HMAC-SHA384 with which a device activates its AK at the registrar. Never shown.
    AuthTag, 48, hidden
);
exact_bytes!(
    /// The first four bytes of SHA-256 over a nonce: says which question an answer belongs to, and nothing more.
    NonceTag, 4, shown
);
exact_bytes!(
    /// One boot of one device: SHA-256 over boot id and TPM reset count, cut to 16 bytes.
    BootMarker, 16, shown
);
exact_bytes!(
    /// The first four bytes of a [`BootMarker`]: tells the boots of one device apart in questions and answers.
    BootTag, 4, shown
);
exact_bytes!(
    /// The first four bytes of SHA-256 over a PCR mask and the values: says which values the other side holds.
    PcrTag, 4, shown
);
exact_bytes!(
    /// The first eight bytes of SHA-256 over what a `Ready` says of a boot: [`super::Ready::tag`].
    ReadyTag, 8, shown
);
exact_bytes!(
    /// Of one [`super::Hello`], chosen at random: says which [`super::Heard`] answers it.
    HelloTag, 8, shown
);
exact_bytes!(
    /// A SHA-256 digest.
    Digest, 32, shown
);
exact_bytes!(
    /// A TPM2B_NAME's content: name algorithm (always SHA-256 here) and digest of the public area. TPM 2.0 Part 1, 16.
    AkName, 34, shown
);

impl Nonce {
    /// The tag by which an answer names this nonce.
    pub fn tag(&self) -> NonceTag {
        NonceTag::from(Digest::of(&[self.as_bytes()]).first())
    }
}

impl BootMarker {
    /// The tag by which questions and answers name this boot.
    pub fn tag(&self) -> BootTag {
        let [a, b, c, d, ..] = *self.as_bytes();
        BootTag::from([a, b, c, d])
    }
}

impl Digest {
    /// SHA-256 over the parts, one after the other.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        Self::from(<[u8; 32]>::from(hash.finalize()))
    }

    /// Its first bytes, for tags.
    pub(crate) fn first<const N: usize>(&self) -> [u8; N] {
        const { assert!(N <= 32) };
        self.as_bytes().first_chunk().copied().unwrap_or([0; N])
    }
}

impl AkName {
    /// The name of the key in a TPM2B_PUBLIC, or nothing when its name algorithm is not SHA-256.
    ///
    /// TPM 2.0 Part 2, 12.2.4: size, then TPMT_PUBLIC with type and nameAlg in front.
    pub fn of_public(tpm2b_public: &[u8]) -> Option<Self> {
        const SHA256: [u8; 2] = [0x00, 0x0b];
        let (size, area) = tpm2b_public.split_at_checked(2)?;
        let whole = usize::from(u16::from_be_bytes(size.try_into().ok()?)) == area.len();
        if !whole || area.get(2..4)? != SHA256 {
            return None;
        }
        let mut name = [0; 34];
        let (algorithm, digest) = name.split_at_mut(2);
        algorithm.copy_from_slice(&SHA256);
        digest.copy_from_slice(Digest::of(&[area]).as_bytes());
        Some(Self::from(name))
    }
}

/// A byte string of at most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Bounded<const MAX: usize>(ByteBuf);

/// A byte string is longer than its field may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{size} bytes are more than the {limit} this field may have")]
pub struct TooLong {
    /// What it has, in bytes.
    pub size: usize,
    /// What it may have, in bytes.
    pub limit: usize,
}

impl<const MAX: usize> Bounded<MAX> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, given away.
    pub fn into_vec(self) -> Vec<u8> {
        self.0.into_vec()
    }
}

impl<const MAX: usize> TryFrom<Vec<u8>> for Bounded<MAX> {
    type Error = TooLong;

    fn try_from(bytes: Vec<u8>) -> Result<Self, TooLong> {
        if bytes.len() > MAX {
            return Err(TooLong { size: bytes.len(), limit: MAX });
        }
        Ok(Self(ByteBuf::from(bytes)))
    }
}

impl<const MAX: usize> fmt::Debug for Bounded<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl<const MAX: usize> Serialize for Bounded<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Bounded<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = ByteBuf::deserialize(deserializer)?;
        Self::try_from(bytes.into_vec()).map_err(serde::de::Error::custom)
    }
}

/// PCRs of the SHA-256 bank, bit `n` for PCR `n`; PCRs 0 to 23 exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PcrMask(u32);

/// A mask names a PCR that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a PCR mask has bits for PCR 0 to 23 only")]
pub struct NoSuchPcr;

impl PcrMask {
    /// Every PCR of a bank.
    pub const ALL: Self = Self(0x00ff_ffff);

    /// The PCRs named in the mask, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..24).filter(move |pcr| self.0 >> pcr & 1 == 1)
    }

    /// How many PCRs it names.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether it names `pcr`.
    pub fn contains(self, pcr: u8) -> bool {
        pcr < 24 && self.0 >> pcr & 1 == 1
    }

    /// The same without `pcr`.
    #[must_use]
    pub fn without(self, pcr: u8) -> Self {
        Self(self.0 & !1_u32.checked_shl(pcr.into()).unwrap_or(0))
    }

    /// Whether every PCR of `other` is in it.
    pub fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl TryFrom<u32> for PcrMask {
    type Error = NoSuchPcr;

    fn try_from(bits: u32) -> Result<Self, NoSuchPcr> {
        if bits & !Self::ALL.0 == 0 { Ok(Self(bits)) } else { Err(NoSuchPcr) }
    }
}

impl From<PcrMask> for u32 {
    fn from(mask: PcrMask) -> Self {
        mask.0
    }
}
