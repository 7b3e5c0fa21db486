//! What a `Ready` says: this boot, bound by a statement that is signed once per boot, and the logs there are.

use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::messages::{Ready, Signed};
use keylime_mqtt_schemas::statement::{StatedBoot, boot_statement};

use super::{Device, EvidenceError, bounded, signed};
use crate::logs::boot::BootRecord;
use crate::logs::ima::{Growth, ImaLog};

/// One boot as the bridge was told of it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) boot: BootRecord,
    stated: StatedBoot,
    statement: Signed,
    /// In the statement's clock; a brief quote names its own only when it is another.
    pub(super) restart_count: u32,
}

impl Device {
    pub(super) async fn describe(&mut self) -> Result<Ready, EvidenceError> {
        if let Some(log) = &mut self.ima
            && log.refresh()? == Growth::Replaced
        {
            tracing::info!("the IMA log begins anew");
            self.known = None;
        }
        let Described { stated, statement, .. } = self.described_boot().await?;
        self.announced = self.ima.as_ref().map_or(0, ImaLog::entries);
        let ready = stated.ready(bounded("AK", self.identity.ak_public.clone())?, statement);
        // The verifier refuses a log without entries; such a device attests without.
        let ima_entries = Some(self.announced).filter(|entries| *entries > 0);
        Ok(Ready { ima_entries, ticket: self.store.state().ticket.clone(), ..ready })
    }

    /// This boot with its statement, which is made once per boot.
    async fn described_boot(&mut self) -> Result<Described, EvidenceError> {
        let marker = self.boot.marker(self.tpm.clock().await?.reset_count)?;
        if let Some(described) = self.described.as_ref().filter(|described| described.boot.marker == marker) {
            return Ok(described.clone());
        }
        let boot = self.boot.record(marker, self.store.state().boot)?;
        self.store.update(|state| state.boot = Some(boot))?;
        let uefi = match &mut self.uefi {
            Some(log) => Some(log.summary(marker)?),
            None => None,
        };
        let ima_sha256 = self.ima.as_ref().map_or(Ok(false), ImaLog::has_sha256_templates)?;
        let reference = self.reference.as_ref().map(Reference::digest);
        let (pcrs, sleep) = (self.pcrs, self.sleep);
        let stated =
            StatedBoot { boot: boot.marker, boot_time: boot.time, uefi, ima_sha256, pcrs, sleep, reference };
        let statement = boot_statement(&self.id, &stated);
        let quoted = self.tpm.quote(statement.as_bytes().to_vec(), 0).await?;
        if self.boot.marker(quoted.clock.reset_count)? != marker {
            return Err(EvidenceError::Rebooted);
        }
        let restart_count = quoted.clock.restart_count;
        let statement = signed(quoted.attest, quoted.signature)?;
        tracing::info!(boot = ?boot.marker, boot_time = boot.time, reset_count = quoted.clock.reset_count, "this boot");
        Ok(self.described.insert(Described { boot, stated, statement, restart_count }).clone())
    }
}
