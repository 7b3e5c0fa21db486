//! Which proxy stands before a broker: from `[broker.proxy]`, from the environment, or none.
//!
//! Invariant: the password is in this module's [`Proxy`] and in the request to the proxy, and nowhere else: not
//! in an error, a log line or Debug output. Passwords do not stand in the configuration file, which is often
//! readable by others; a URL from the environment may carry one, for that is where curl and others look.

use std::{fmt, fs::File, io, io::Read, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use zeroize::Zeroizing;

use super::no_proxy;
use crate::path::authority;
use crate::secret_file::is_exposed;

/// Where the proxy of HTTPS requests is looked for, in this order.
const VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
/// Where hosts are named that are reached without it.
const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// RFC 9110 §4.2.1.
const HTTP_PORT: u16 = 80;
/// A password is a line; anything else was named by mistake.
const LONGEST_PASSWORD: u64 = 4096;

/// `broker.proxy`: `"environment"` (the default), `"none"`, or a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ProxyChoice {
    /// As `HTTPS_PROXY` and `NO_PROXY` say, in upper or lower case.
    #[default]
    Environment,
    /// Straight to the broker, whatever the environment says.
    None,
    /// This one.
    Table(ProxySettings),
}

/// The table `[broker.proxy]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySettings {
    /// `http://host:port` of an HTTP proxy that allows CONNECT; without user and password.
    pub url: String,
    /// For Basic authentication.
    #[serde(default)]
    pub user: Option<String>,
    /// File whose first line is the password, readable by its owner alone.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// Why the proxy's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProxySettingsError {
    /// Not `http://host:port`.
    #[error(
        "{setting} is not a proxy this client can use ({reason}): write http://host:port, or broker.proxy = \"none\" to go without"
    )]
    Url {
        /// The key or variable.
        setting: &'static str,
        /// Without the URL itself, which may hold a password.
        reason: &'static str,
    },
    /// A password in the configuration file.
    #[error(
        "broker.proxy.url holds a user or a password: put them into broker.proxy.user and a file named by broker.proxy.password_file"
    )]
    PasswordInUrl,
    /// One without the other.
    #[error("broker.proxy: user and password_file go together; set both or none")]
    Half,
    /// A user that Basic authentication cannot carry.
    #[error("broker.proxy.user must not be empty or hold a colon or control characters (RFC 7617)")]
    User,
    /// The file cannot be read, or holds no password.
    #[error("broker.proxy.password_file: cannot use {}: {reason}", .file.display())]
    PasswordFile {
        /// As configured.
        file: PathBuf,
        /// What to mend.
        reason: String,
    },
}

/// A proxy to go through.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    host: String,
    port: u16,
    setting: &'static str,
    /// `user:password`.
    credentials: Option<Zeroizing<String>>,
}

/// Reads a variable of the environment.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl ProxyChoice {
    /// The proxy on the way to this broker, if any.
    pub(crate) fn on_the_way_to(
        &self,
        host: &str,
        port: u16,
        environment: Environment<'_>,
    ) -> Result<Option<Proxy>, ProxySettingsError> {
        match self {
            Self::None => Ok(None),
            Self::Table(settings) => settings.check().map(Some),
            Self::Environment => from_environment(host, port, environment),
        }
    }
}

fn from_environment(
    host: &str,
    port: u16,
    environment: Environment<'_>,
) -> Result<Option<Proxy>, ProxySettingsError> {
    let set =
        |name: &&'static str| Some((*name, environment(name).filter(|value| !value.trim().is_empty())?));
    let Some((setting, url)) = VARIABLES.iter().find_map(set) else { return Ok(None) };
    let exceptions = EXCEPTIONS.iter().find_map(set).map(|(_, value)| value).unwrap_or_default();
    if no_proxy::excepts(&exceptions, host, port) {
        return Ok(None);
    }
    Proxy::parse(setting, url.trim()).map(Some)
}

impl ProxySettings {
    fn check(&self) -> Result<Proxy, ProxySettingsError> {
        let mut proxy = Proxy::parse("broker.proxy.url", &self.url)?;
        if proxy.credentials.is_some() {
            return Err(ProxySettingsError::PasswordInUrl);
        }
        proxy.credentials = match (&self.user, &self.password_file) {
            (None, None) => None,
            (Some(user), Some(file)) => {
                if user.is_empty() || user.contains(':') || user.contains(char::is_control) {
                    return Err(ProxySettingsError::User);
                }
                let password = password(file)?;
                let mut pair = Zeroizing::new(String::with_capacity(user.len() + 1 + password.len()));
                pair.push_str(user);
                pair.push(':');
                pair.push_str(&password);
                Some(pair)
            }
            _ => return Err(ProxySettingsError::Half),
        };
        Ok(proxy)
    }
}

/// The first line of a file that its owner alone can read.
fn password(file: &Path) -> Result<Zeroizing<String>, ProxySettingsError> {
    let unusable = |reason: String| ProxySettingsError::PasswordFile { file: file.to_owned(), reason };
    let unreadable =
        |error: io::Error| unusable(format!("{error}; check the path and the owner of the file"));
    let opened = File::open(file).map_err(unreadable)?;
    let mode = opened.metadata().map_err(unreadable)?.mode();
    if is_exposed(file, mode) {
        return Err(unusable(format!(
            "it can be read by others (mode {:03o}); run chmod 600 on it",
            mode & 0o777
        )));
    }
    let mut text = Zeroizing::new(String::new());
    opened.take(LONGEST_PASSWORD).read_to_string(&mut text).map_err(unreadable)?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
        _ => Err(unusable("it holds no password in its first line".into())),
    }
}

impl Proxy {
    /// `[http://][user[:password]@]host[:port][/]`, as curl takes it.
    fn parse(setting: &'static str, url: &str) -> Result<Self, ProxySettingsError> {
        let refuse = |reason| ProxySettingsError::Url { setting, reason };
        let rest = match url.split_once("://") {
            None => url,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err(refuse(
                    "TLS to the proxy itself is not supported; TLS to the broker goes through it",
                ));
            }
            Some(_) => return Err(refuse("it is not an HTTP proxy")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err(refuse("it has a path"));
        }
        let (credentials, place) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((pair, place)) => (Some(pair), place),
        };
        let (host, port) = split_port(place).ok_or_else(|| refuse("its host or port cannot be read"))?;
        let credentials = credentials
            .map(|pair| decode_pair(pair).ok_or_else(|| refuse("its user or password cannot be read")))
            .transpose()?;
        Ok(Self { host, port, setting, credentials })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        authority(&self.host, self.port)
    }

    /// The key or variable that names it.
    pub(crate) fn setting(&self) -> &'static str {
        self.setting
    }

    /// RFC 7617 §2: user and password in base64.
    pub(crate) fn basic(&self) -> Option<Zeroizing<String>> {
        self.credentials.as_ref().map(|pair| Zeroizing::new(STANDARD.encode(pair.as_bytes())))
    }
}

fn split_port(place: &str) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        (host, after.strip_prefix(':'))
    } else {
        place.rsplit_once(':').map_or((place, None), |(host, port)| (host, Some(port)))
    };
    let port = port.map_or(Some(HTTP_PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
    let usable = !host.is_empty() && !host.contains(|sign: char| sign.is_whitespace() || sign.is_control());
    usable.then(|| (host.to_owned(), port))
}

/// `user:password` with percent-encoding undone; a user alone gets an empty password.
fn decode_pair(pair: &str) -> Option<Zeroizing<String>> {
    let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
    let (user, password) = (percent_decoded(user)?, percent_decoded(password)?);
    if user.contains(':') {
        return None;
    }
    let mut decoded = Zeroizing::new(String::with_capacity(pair.len() + 1));
    decoded.push_str(&user);
    decoded.push(':');
    decoded.push_str(&password);
    (!decoded.contains(char::is_control)).then_some(decoded)
}

fn percent_decoded(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        });
    }
    std::str::from_utf8(&bytes).ok().map(|text| Zeroizing::new(text.to_owned()))
}

impl fmt::Debug for Proxy {
    /// Without the credentials.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, setting, credentials } = self;
        let authenticated = credentials.is_some();
        write!(out, "Proxy({} from {setting}, authenticated: {authenticated})", authority(host, *port))
    }
}

impl<'de> Deserialize<'de> for ProxyChoice {
    /// A word or a table; an untagged enum would not name the wrong key.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrTable;
        impl<'de> Visitor<'de> for WordOrTable {
            type Value = ProxyChoice;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("\"environment\", \"none\" or a table with url")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<ProxyChoice, E> {
                match word {
                    "environment" => Ok(ProxyChoice::Environment),
                    "none" => Ok(ProxyChoice::None),
                    // not the value itself: it may be a URL with a password
                    _ => Err(E::custom("proxy is \"environment\", \"none\" or a table with url")),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ProxyChoice, A::Error> {
                ProxySettings::deserialize(MapAccessDeserializer::new(map)).map(ProxyChoice::Table)
            }
        }
        deserializer.deserialize_any(WordOrTable)
    }
}
