//! `GET /version`: whether a Keylime service is there, and which. The doctor asks it; the exchange does not need it.

use super::endpoint::{Call, Endpoint, JSON, Keep, MAX_ANSWER};
use super::unavailable::{Reason, Unavailable};
use super::{Registrar, Verifier};
use reqwest::Method;
use serde::Deserialize;

/// Most versions believed, and longest name of one: Keylime lists about ten of three characters
const MOST_VERSIONS: usize = 32;
/// See [`MOST_VERSIONS`]
const LONGEST_VERSION: usize = 8;

/// How a verifier runs
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifierMode {
    /// 410: versions are not told in push mode (`keylime/web/verifier/server_info_controller.py`)
    Push,
    /// Versions are told
    Pull,
}

#[derive(Deserialize)]
struct Told {
    results: Versions,
}

#[derive(Deserialize)]
struct Versions {
    supported_versions: Vec<String>,
}

impl Registrar {
    /// API versions that the registrar says it has
    ///
    /// # Errors
    /// When nothing usable answers.
    pub async fn versions(&self) -> Result<Vec<String>, Unavailable> {
        versions(&self.endpoint).await?.ok_or_else(|| self.endpoint.unavailable(Reason::UnexpectedStatus))
    }
}

impl Verifier {
    /// In which mode the verifier runs
    ///
    /// # Errors
    /// When nothing usable answers.
    pub async fn mode(&self) -> Result<VerifierMode, Unavailable> {
        Ok(if versions(&self.endpoint).await?.is_some() { VerifierMode::Pull } else { VerifierMode::Push })
    }
}

/// Nothing when they are not told (410)
async fn versions(endpoint: &Endpoint) -> Result<Option<Vec<String>>, Unavailable> {
    let call = Call {
        method: Method::GET,
        path: &["version"],
        content_type: JSON,
        token: None,
        body: None,
        agent: "",
        max_answer: MAX_ANSWER,
        keep: Keep::All,
    };
    let answer = endpoint.send(call).await?;
    match answer.status {
        200 => {
            let body = answer.body.as_ref().map_err(|reason| endpoint.unavailable(*reason))?;
            let told: Told =
                serde_json::from_slice(body).map_err(|_| endpoint.unavailable(Reason::Garbage))?;
            let fits = |version: &String| {
                version.len() <= LONGEST_VERSION && version.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            };
            Ok(Some(told.results.supported_versions.into_iter().filter(fits).take(MOST_VERSIONS).collect()))
        }
        410 => Ok(None),
        _ => Err(endpoint.unavailable_answer(&answer)),
    }
}
