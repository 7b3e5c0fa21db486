//! Three devices, one for each kind of policy; the last is the one that will be tampered with.

use anyhow::{Context, Result, anyhow, ensure};
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{ALLOWED_PROGRAMS, World};

/// The devices, in the order of the table.
pub(crate) struct Fleet {
    devices: Vec<Device>,
}

impl Fleet {
    /// Makes, boots, starts and enrols them, all at the same time.
    pub(crate) fn boot(world: &World) -> Result<Self> {
        let plans = [
            ("pump-1", DeviceSettings::default(), Policies::quote_only()),
            ("camera-2", DeviceSettings::with_measured_boot()?, Policies::measured_boot()),
            ("gateway-3", DeviceSettings::full()?, Policies::full()),
        ];
        let devices = std::thread::scope(|scope| {
            let booting: Vec<_> = plans
                .into_iter()
                .map(|(id, settings, policies)| scope.spawn(move || boot(world, id, settings, &policies)))
                .collect();
            booting
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a device panicked"))?)
                .collect::<Result<Vec<Device>>>()
        })?;
        Ok(Self { devices })
    }

    /// Their ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().map(Device::id)
    }

    /// The one with an IMA policy.
    pub(crate) fn victim(&mut self) -> Result<&mut Device> {
        self.devices.last_mut().context("an empty fleet")
    }

    /// That Keylime itself says what the table says.
    pub(crate) fn confirm_with_operator(&self, world: &World) -> Result<()> {
        for (place, device) in self.devices.iter().enumerate() {
            let status = world.keylime.cvstatus(device.id())?.context("not enrolled")?.attestation_status;
            let expected = if place + 1 == self.devices.len() { "FAIL" } else { "PASS" };
            ensure!(status == expected, "keylime_tenant says {status} of {}, not {expected}", device.id());
        }
        Ok(())
    }
}

fn boot(world: &World, id: &str, settings: DeviceSettings, policies: &Policies) -> Result<Device> {
    let has_ima = settings.ima;
    let mut device = world.device(id, DeviceSettings { id: Some(id.to_owned()), ..settings })?;
    if has_ima {
        for program in ALLOWED_PROGRAMS {
            device.run_program(program)?;
        }
    }
    world.admit(device.id(), device.ek_hash())?;
    device.start_agent()?;
    world.enrol(&device, policies)?;
    Ok(device)
}
