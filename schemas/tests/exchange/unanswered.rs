//! What a device says of a bridge that does not answer, and when it may not say so.

use keylime_mqtt_schemas::exchange::attester::{Attester, Input, Output, Report, Settings, Work};
use keylime_mqtt_schemas::messages::Up;

use super::device::Device;
use super::hand::AT;

fn outputs(attester: &mut Attester) -> Vec<Output> {
    std::iter::from_fn(|| attester.poll_output()).collect()
}

#[test]
fn a_device_whose_tpm_is_slow_asks_once_and_does_not_blame_the_bridge() {
    let mut device = Device::new("slow", 1);
    let mut attester = Attester::new(Settings::default(), true);
    attester.handle(Input::Connected, AT(0));
    assert!(matches!(outputs(&mut attester)[..], [Output::Work(Work::Describe)]));
    let mut now = AT(0);
    while now < AT(3600) {
        now = attester.poll_timeout().unwrap();
        attester.handle_timeout(now);
        assert!(outputs(&mut attester).is_empty(), "nothing was said yet");
    }
    attester.handle(Input::Done(device.work(Work::Describe)), now);
    assert!(matches!(outputs(&mut attester)[..], [Output::Send(Up::Ready(_), ..)]));
    now = attester.poll_timeout().unwrap();
    attester.handle_timeout(now);
    let blamed = |output: &Output| matches!(output, Output::Report(Report::Unanswered(1)));
    assert!(outputs(&mut attester).iter().any(blamed), "from then on silence is the bridge's");
}
