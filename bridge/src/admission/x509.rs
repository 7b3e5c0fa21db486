//! The parts of a certificate that chains and EK profiles look at, as lenient in form as makers are.
//!
//! TLS libraries refuse what TPM makers issue: critical policies, defaults that are written out, sets in no order, serials of any
//! form. None of that matters to what is read here. Invariant: all bytes are accounted for, and no extension that is looked at
//! comes twice.
//!
//! Source: RFC 5280, 4.1 and 4.2.

use spki::der::asn1::{AnyRef, BitStringRef, GeneralizedTime, ObjectIdentifier, UtcTime};
use spki::der::{self, Decode as _, ErrorKind, Reader as _, SliceReader, Tag, TagNumber};
use std::ops::RangeInclusive;

const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const ALTERNATIVE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");
/// Which policies a CA works by. With no policy asked for, as here, they decide nothing (RFC 5280, 6.1.1).
const POLICIES: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.32");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");

/// Constructed, context-specific `[3]`: the extensions
const EXTENSIONS: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber::N3 };
/// Constructed, context-specific `[0]`: the version
const VERSION: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber::N0 };

/// A certificate, not judged in any way
#[derive(Debug, Clone)]
pub(super) struct Certificate<'a> {
    /// TBSCertificate with its header: what is signed
    pub(super) signed: &'a [u8],
    /// Content of the AlgorithmIdentifier
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    /// Content of the names
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// Unix seconds
    pub(super) valid: RangeInclusive<u64>,
    /// SubjectPublicKeyInfo with its header
    pub(super) public_key: &'a [u8],
    pub(super) extensions: Extensions<'a>,
}

/// Extensions that are looked at, by their content
#[derive(Debug, Clone, Default)]
pub(super) struct Extensions<'a> {
    key_usage: Option<&'a [u8]>,
    pub(super) alternative_name: Option<&'a [u8]>,
    basic_constraints: Option<&'a [u8]>,
    pub(super) name_constraints: Option<&'a [u8]>,
    policies: Option<&'a [u8]>,
    extended_key_usage: Option<&'a [u8]>,
    /// One that is critical and not known here
    pub(super) unknown_critical: Option<ObjectIdentifier>,
}

/// What a certificate says of its subject as a CA
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BasicConstraints {
    pub(super) is_ca: bool,
    pub(super) path_length: Option<u8>,
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(der: &'a [u8]) -> der::Result<Self> {
        let mut whole = sequence(der)?;
        let signed = whole.tlv_bytes()?;
        let signature_algorithm = content(&mut whole, Tag::Sequence)?;
        let signature = whole_bytes(&mut whole)?;
        whole.finish(())?;

        let mut tbs = sequence(signed)?;
        if tbs.peek_tag()? == VERSION {
            content(&mut tbs, VERSION)?;
        }
        content(&mut tbs, Tag::Integer)?;
        if content(&mut tbs, Tag::Sequence)? != signature_algorithm {
            return Err(ErrorKind::Value { tag: Tag::Sequence }.into());
        }
        let issuer = content(&mut tbs, Tag::Sequence)?;
        let mut validity = SliceReader::new(content(&mut tbs, Tag::Sequence)?)?;
        let valid = time(&mut validity)?..=time(&mut validity)?;
        validity.finish(())?;
        let subject = content(&mut tbs, Tag::Sequence)?;
        let public_key = tbs.tlv_bytes()?;
        let mut extensions = Extensions::default();
        if !tbs.is_finished() {
            extensions = Extensions::parse(content(&mut tbs, EXTENSIONS)?)?;
        }
        tbs.finish(Self {
            signed,
            signature_algorithm,
            signature,
            issuer,
            subject,
            valid,
            public_key,
            extensions,
        })
    }
}

impl<'a> Extensions<'a> {
    fn parse(explicit: &'a [u8]) -> der::Result<Self> {
        let mut list = sequence(explicit)?;
        let mut extensions = Self::default();
        while !list.is_finished() {
            let mut extension = SliceReader::new(content(&mut list, Tag::Sequence)?)?;
            let id = ObjectIdentifier::decode(&mut extension)?;
            // X.690, 11.5 has FALSE left out; some makers write it
            let critical = extension.peek_tag()? == Tag::Boolean && bool::decode(&mut extension)?;
            let value = content(&mut extension, Tag::OctetString)?;
            extension.finish(())?;
            extensions.remember(id, critical, value)?;
        }
        Ok(extensions)
    }

    fn remember(&mut self, id: ObjectIdentifier, critical: bool, value: &'a [u8]) -> der::Result<()> {
        let place = match id {
            KEY_USAGE => &mut self.key_usage,
            ALTERNATIVE_NAME => &mut self.alternative_name,
            BASIC_CONSTRAINTS => &mut self.basic_constraints,
            NAME_CONSTRAINTS => &mut self.name_constraints,
            POLICIES => &mut self.policies,
            EXTENDED_KEY_USAGE => &mut self.extended_key_usage,
            _ => {
                if critical {
                    self.unknown_critical = Some(id);
                }
                return Ok(());
            }
        };
        if place.replace(value).is_some() {
            return Err(ErrorKind::Value { tag: Tag::ObjectIdentifier }.into());
        }
        Ok(())
    }

    /// Nothing said is "no CA"
    pub(super) fn basic_constraints(&self) -> der::Result<BasicConstraints> {
        let Some(value) = self.basic_constraints else { return Ok(BasicConstraints::default()) };
        let mut reader = sequence(value)?;
        let mut said = BasicConstraints::default();
        if !reader.is_finished() && reader.peek_tag()? == Tag::Boolean {
            said.is_ca = bool::decode(&mut reader)?;
        }
        if !reader.is_finished() {
            said.path_length = Some(u8::decode(&mut reader)?);
        }
        reader.finish(said)
    }

    /// The first byte of the bits, bit 0 foremost; `None` when nothing is said
    pub(super) fn key_usage(&self) -> der::Result<Option<u8>> {
        let Some(value) = self.key_usage else { return Ok(None) };
        Ok(Some(BitStringRef::from_der(value)?.raw_bytes().first().copied().unwrap_or_default()))
    }

    /// The purposes; `None` when nothing is said
    pub(super) fn extended_key_usage(&self) -> der::Result<Option<Vec<ObjectIdentifier>>> {
        let Some(value) = self.extended_key_usage else { return Ok(None) };
        let mut reader = sequence(value)?;
        let mut purposes = Vec::new();
        while !reader.is_finished() {
            purposes.push(ObjectIdentifier::decode(&mut reader)?);
        }
        Ok(Some(purposes))
    }
}

/// What is in exactly one SEQUENCE
fn sequence(der: &[u8]) -> der::Result<SliceReader<'_>> {
    let mut reader = SliceReader::new(der)?;
    let inner = content(&mut reader, Tag::Sequence)?;
    reader.finish(SliceReader::new(inner)?)
}

/// What is in the next element, which has this tag
pub(super) fn content<'a>(reader: &mut SliceReader<'a>, tag: Tag) -> der::Result<&'a [u8]> {
    let element = AnyRef::decode(reader)?;
    let found = der::Tagged::tag(&element);
    if found == tag { Ok(element.value()) } else { Err(found.unexpected_error(Some(tag))) }
}

/// A BIT STRING that is bytes: with bits left unused it would be another certificate of the same signature
pub(super) fn whole_bytes<'a>(reader: &mut SliceReader<'a>) -> der::Result<&'a [u8]> {
    BitStringRef::decode(reader)?.as_bytes().ok_or_else(|| Tag::BitString.value_error())
}

fn time(reader: &mut SliceReader<'_>) -> der::Result<u64> {
    let since_epoch = match reader.peek_tag()? {
        Tag::GeneralizedTime => GeneralizedTime::decode(reader)?.to_unix_duration(),
        _ => UtcTime::decode(reader)?.to_unix_duration(),
    };
    Ok(since_epoch.as_secs())
}
