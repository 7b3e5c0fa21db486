//! Device side: TPM, measurement logs and evidence
