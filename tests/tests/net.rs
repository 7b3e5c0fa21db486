//! The core of `make test-net`: devices behind real firewalls, on a real Keylime. Where this machine allows no network
//! namespaces (not root, as a rule), it says so and passes.

use anyhow::{Result, ensure};
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::netlab::{
    Carrier, LinkProfile, Listeners, NetWorld, Site, SiteSettings, Told, Way, why_not,
};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::WorldSettings;

/// A device at its site, looked at for listening sockets all the time. Its parts end in this order.
struct Post {
    device: Device,
    listeners: Listeners,
    site: Site,
}

#[test]
fn behind_firewalls_every_way_out_and_a_bad_link_lead_to_passes_and_nobody_gets_in() -> Result<()> {
    if let Some(reason) = why_not() {
        println!("SKIPPED, nothing was tested: no network namespaces here ({reason})");
        return Ok(());
    }
    // Long enough for the round trips of the bad link, short enough for many.
    let keylime = KeylimeSettings { quote_interval: 6, ..KeylimeSettings::default() };
    let lab = NetWorld::start(&WorldSettings { keylime, as_shipped: true, ..WorldSettings::default() })?;
    let good = LinkProfile::default();
    let nb_iot = LinkProfile { loss: 0, ..LinkProfile::nb_iot() };
    let websocket = Way::straight(Carrier::WebSocket);
    let mut posts = Vec::new();
    for (name, way, ipv6, link) in [
        ("bad-link", Way::straight(Carrier::Mqtts), false, nb_iot),
        ("alpn", Way::straight(Carrier::Alpn("mqtt")), false, good),
        ("ipv6", websocket, true, good),
        ("proxied", Way::proxied(Carrier::Alpn("x-amzn-mqtt-ca"), Told::Environment, true), false, good),
        ("websocket", Way::proxied(Carrier::WebSocket, Told::Configuration, false), false, good),
    ] {
        let site =
            lab.site(&SiteSettings { holes: vec![way.hole()], ipv6, link, ..SiteSettings::default() })?;
        let forbidden = if way.port() == 443 { 8883 } else { 443 };
        ensure!(!site.reaches(forbidden), "the firewall of {name} lets out to {forbidden}");
        let settings = DeviceSettings { as_shipped: true, ..DeviceSettings::default() };
        let mut device = lab.device(&site, name, &way, settings)?;
        device.start_agent()?;
        let listeners = Listeners::watch(device.agent()?.pid(), site.device());
        posts.push(Post { device, listeners, site });
    }
    for post in &posts {
        lab.world.enrol(&post.device, &Policies::quote_only())?;
    }
    for post in &posts {
        lab.world.passes_anew(&post.device)?;
    }
    let [bad, other, ..] = posts.as_slice() else { unreachable!() };
    bad.site.set_link(LinkProfile { cut: true, ..nb_iot });
    lab.world.passes_anew(&other.device)?;
    bad.site.set_link(nb_iot);
    lab.world.passes_anew(&bad.device)?;

    for Post { device, listeners, site } in &posts {
        let name = device.name();
        lab.world.never_failed(device)?;
        let (looks, found) = listeners.found();
        ensure!(looks > 0 && found.is_empty(), "{name} listens: {found:?} in {looks} looks");
        let (let_out, _, _) = site.firewall()?;
        ensure!(let_out > 0, "nothing of {name} went through its firewall");
    }
    ensure!(!bad.site.is_reached_by(&lab.internet), "the site is reached from outside");
    println!("tested: {} ways through a firewall, one of them over NB-IoT", posts.len());
    Ok(())
}
