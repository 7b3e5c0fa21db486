//! Why a connection could not be made or was lost, in words an operator can act on.
//!
//! Each kind says whose fault it is and what to do. None of them changes how the next attempt is made: a
//! refused certificate is refused again, never worked around.

use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rumqttc::{ConnectReturnCode, StateError, mqttbytes};
use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::UnixTime;

use crate::path::{Milestone, PathError, ProxyError, UpgradeError, is_end};

/// Whether CONNACK had arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting,
    Connected,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Loss {
    #[error(
        "the broker's certificate was issued by none of the CAs in broker.ca_file: put the right CA there; or someone stands between, such as a proxy that inspects TLS, whose operator must exempt this host"
    )]
    UnknownCa,
    #[error(
        "the broker's certificate is for another host name: set broker.host to a name in the certificate, or someone stands between"
    )]
    WrongHost,
    #[error(
        "this machine's clock says {} and the broker's certificate is valid from {}: set the clock (NTP, GNSS, the modem); a device without a battery for it wakes in the past, and connects by itself once it is right",
        date(*clock), date(*from)
    )]
    NotYetValid { clock: UnixTime, from: UnixTime },
    #[error(
        "the broker's certificate ended on {} and this machine's clock says {}: renew the certificate, or set the clock",
        date(*until), date(*clock)
    )]
    Expired { clock: UnixTime, until: UnixTime },
    #[error("the broker's certificate was not accepted ({0:?}): see how it was issued")]
    BrokerCertificate(CertificateError),
    #[error(
        "the broker refused this client's certificate ({0:?}): check the validity and issuer of broker.cert_file against the broker's own CA file"
    )]
    ClientCertificate(AlertDescription),
    #[error(
        "the broker does not speak TLS 1.3: upgrade it, or accept TLS 1.2 with broker.allow_tls12 = true"
    )]
    TlsVersion,
    #[error(
        "the broker takes none of the protocols in broker.alpn: set those it asks for, or remove the key"
    )]
    AlpnRefused,
    /// The failure, and that ALPN was not agreed on.
    #[error(
        "{0}; and the peer chose none of broker.alpn, so what listens at broker.port may not be the broker"
    )]
    AlpnIgnored(Box<Loss>),
    #[error("what listens there does not speak TLS: check broker.host and broker.port")]
    NotTls,
    #[error(
        "the connection was closed during the TLS handshake: check broker.port, the broker's log, and whether a firewall on the way lets TLS through"
    )]
    ClosedInTls,
    #[error("TLS failed: {0}")]
    Tls(rustls::Error),
    #[error(transparent)]
    Path(PathError),
    #[error(
        "the broker refused this client ({0:?}): enter the certificate's subject in the broker's users and ACL"
    )]
    NotAuthorized(ConnectReturnCode),
    #[error("the broker refused to serve ({0:?}): see the broker's log")]
    Refused(ConnectReturnCode),
    #[error(
        "the broker closed the connection before it answered CONNECT: usually it refused broker.cert_file or the client id; see the broker's log"
    )]
    ClosedBeforeConnack,
    #[error(
        "the broker closed the connection: it was stopped, or another client uses the same client id, or it refused a packet; see the broker's log"
    )]
    Closed,
    #[error(
        "no connection within broker.connect_timeout_seconds, which got as far as: {reached}; check broker.host, broker.port and the firewalls on the way (is a proxy needed?)"
    )]
    ConnectTimeout { reached: String },
    #[error("the network failed: {0}")]
    Network(io::Error),
    #[error("the broker left a ping unanswered: the network or the broker hangs")]
    PingUnanswered,
    #[error("no progress for {seconds} s: the network or the broker hangs")]
    Hung { seconds: u64 },
    #[error(
        "no acknowledgement for {seconds} s (broker.ack_timeout_seconds): the network or the broker hangs"
    )]
    AckOverdue { seconds: u64 },
    #[error(
        "a log has stopped on its way, which is most likely a cut of the link: a new connection goes on sooner than this one would"
    )]
    Stalled,
    /// On a visit, where one answer is waited for.
    #[error(
        "the broker did not answer within {seconds} s (broker.ack_timeout_seconds): the network or the broker hangs"
    )]
    Unanswered { seconds: u64 },
    #[error(
        "the broker sent a packet of {size} bytes, more than this client can even skip: look for a retained message of that size and set a message size limit in the broker"
    )]
    Oversize { size: usize },
    #[error(
        "the broker closes the connection over packets that cannot be made smaller: raise its limit to {least} bytes or more, 123904 if it can; with less keylime-mqtt cannot work"
    )]
    PacketLimit { least: usize },
    #[error("the peer does not speak MQTT 3.1.1 as it should ({0}): check broker.port")]
    Protocol(String),
}

impl Loss {
    pub(crate) fn from_path(error: PathError) -> Self {
        match error {
            PathError::Tls(error) if is_end(&error) => Self::ClosedInTls,
            PathError::Tls(error) | PathError::WebSocket(UpgradeError::Io(error)) => {
                Self::from_io(error, Phase::Connecting)
            }
            error => Self::Path(error),
        }
    }

    pub(crate) fn from_code(code: ConnectReturnCode) -> Self {
        match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                Self::NotAuthorized(code)
            }
            code => Self::Refused(code),
        }
    }

    pub(crate) fn timed_out(passed: &[Milestone]) -> Self {
        let reached = passed.last().map_or_else(|| "nothing".into(), ToString::to_string);
        Self::ConnectTimeout { reached }
    }

    pub(crate) fn stalled() -> Self {
        Self::Network(io::Error::new(io::ErrorKind::TimedOut, "the peer stopped reading"))
    }

    /// Adds that the protocol was not agreed on, where that may be the cause.
    pub(crate) fn without_alpn(self) -> Self {
        match self {
            Self::ClosedBeforeConnack | Self::Protocol(_) => Self::AlpnIgnored(Box::new(self)),
            other => other,
        }
    }

    /// Whether it takes a person and some time, so that the next attempt may wait its longest.
    pub(crate) fn lasts(&self) -> bool {
        // a password that is tried again and again gets an account locked
        matches!(
            self,
            Self::NotYetValid { .. }
                | Self::Oversize { .. }
                | Self::PacketLimit { .. }
                | Self::Path(PathError::Proxy(ProxyError::CredentialsRefused { .. }))
        )
    }

    /// When this machine's clock has to be there before another attempt can succeed.
    pub(crate) fn good_from(&self) -> Option<SystemTime> {
        match self {
            Self::NotYetValid { from, .. } => Some(UNIX_EPOCH + Duration::from_secs(from.as_secs())),
            _ => None,
        }
    }

    /// Whether the connection was lost without a word.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::PingUnanswered | Self::Hung { .. } | Self::AckOverdue { .. })
    }

    pub(crate) fn from_state(error: StateError, phase: Phase) -> Self {
        match error {
            StateError::Io(error) | StateError::Deserialization(mqttbytes::Error::Io(error)) => {
                Self::from_io(error, phase)
            }
            StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(size)) => {
                Self::Oversize { size }
            }
            StateError::ConnectionAborted => Self::closed(phase),
            StateError::AwaitPingResp => Self::PingUnanswered,
            StateError::CollisionTimeout => {
                Self::Protocol("an acknowledgement was left out while later ones came".into())
            }
            other => Self::Protocol(other.to_string()),
        }
    }

    /// rustls errors travel inside [`io::Error`], before and after the handshake: with TLS 1.3 a refused client
    /// certificate shows only at the first read (RFC 8446 §4.4.2.4).
    fn from_io(error: io::Error, phase: Phase) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::from_tls(tls.clone());
        }
        if is_end(&error) { Self::closed(phase) } else { Self::Network(error) }
    }

    fn from_tls(error: rustls::Error) -> Self {
        use AlertDescription as Alert;
        match error {
            rustls::Error::InvalidCertificate(fault) => match fault {
                // the second when a CA was made anew under its old name
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::WrongHost
                }
                CertificateError::NotValidYetContext { time, not_before } => {
                    Self::NotYetValid { clock: time, from: not_before }
                }
                CertificateError::ExpiredContext { time, not_after } => {
                    Self::Expired { clock: time, until: not_after }
                }
                fault => Self::BrokerCertificate(fault),
            },
            rustls::Error::AlertReceived(Alert::NoApplicationProtocol)
            | rustls::Error::NoApplicationProtocol => Self::AlpnRefused,
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::AlertReceived(Alert::ProtocolVersion) | rustls::Error::PeerIncompatible(_) => {
                Self::TlsVersion
            }
            rustls::Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                // a CA of the same name with another key
                | Alert::DecryptError
                | Alert::AccessDenied),
            ) => Self::ClientCertificate(alert),
            error => Self::Tls(error),
        }
    }

    pub(crate) fn closed(phase: Phase) -> Self {
        match phase {
            Phase::Connecting => Self::ClosedBeforeConnack,
            Phase::Connected => Self::Closed,
        }
    }
}

/// As in HTTP: with the day of the week, and in GMT.
fn date(time: UnixTime) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}
