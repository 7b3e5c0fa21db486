//! The cells: every path on a good link, the paths that matter on each link, both brokers.

use crate::cell::{Cell, Load};
use crate::script::Script;
use keylime_mqtt_tests::netlab::{Carrier, Hole, LinkProfile, ProxyPort, SiteSettings, Told, Way};

const ALPN: Carrier = Carrier::Alpn("mqtt");

pub(crate) fn all() -> Vec<Cell> {
    // what takes longest begins first
    let mut cells = links();
    cells.extend(gateway());
    cells.extend(paths());
    cells
}

/// A cell on a good link, which has to pass a few times.
fn path(way: Way) -> Cell {
    Cell {
        path: way.to_string(),
        link: "good",
        broker: "mosquitto",
        site: SiteSettings { holes: vec![way.hole()], ..SiteSettings::default() },
        way,
        load: Load::Quote,
        script: Script::Passes { times: 3 },
        forbidden: if way.port() == 443 { 8883 } else { 443 },
    }
}

fn paths() -> Vec<Cell> {
    let (mqtts, websocket) = (Carrier::Mqtts, Carrier::WebSocket);
    let (configured, environment) = (Told::Configuration, Told::Environment);
    let mut cells: Vec<Cell> = [
        Way::straight(mqtts),
        Way::straight(ALPN),
        Way::straight(Carrier::Alpn("x-amzn-mqtt-ca")),
        Way::straight(websocket),
        Way::proxied(mqtts, configured, false),
        Way::proxied(mqtts, environment, true),
        Way::proxied(ALPN, environment, false),
        Way::proxied(ALPN, configured, true),
        Way::proxied(websocket, configured, false),
        Way::proxied(websocket, environment, true),
        Way { excepted: true, ..Way::straight(mqtts) },
    ]
    .map(path)
    .into();
    for way in [Way::straight(mqtts), Way::straight(websocket)] {
        let cell = path(way);
        let site = SiteSettings { ipv6: true, ..cell.site };
        cells.push(Cell { path: format!("{}, IPv6 alone", cell.path), site, ..cell });
    }
    let stock = ProxyPort { asks: false, allows_mqtt: false };
    let way = Way { proxy: Some((configured, stock)), ..Way::straight(mqtts) };
    cells.push(Cell {
        path: "8883, stock proxy".to_owned(),
        script: Script::Refused { reason: "stock proxies allow port 443 alone" },
        ..path(way)
    });
    let closed = SiteSettings::default();
    cells.push(Cell {
        path: "nothing gets out".to_owned(),
        site: closed,
        script: Script::Refused { reason: "firewalls on the way" },
        ..path(Way::straight(mqtts))
    });
    cells
}

fn links() -> Vec<Cell> {
    let straight = path(Way::straight(Carrier::Mqtts));
    let proxied = path(Way::proxied(Carrier::WebSocket, Told::Configuration, true));
    let watched = Script::Watched { intervals: 5 };
    let on = |cell: &Cell, name: &'static str, link: LinkProfile, load: Load| Cell {
        link: name,
        site: SiteSettings { link, ..cell.site.clone() },
        load,
        script: watched,
        ..cell.clone()
    };
    let (lte_m, nb_iot) = (LinkProfile::lte_m(), LinkProfile::nb_iot());
    let forgetful = |cell: &Cell| Cell {
        link: "NAT forgets after 30 s",
        site: SiteSettings { forgets_after: Some(30), ..cell.site.clone() },
        script: watched,
        ..cell.clone()
    };
    vec![
        Cell {
            script: Script::Passes { times: 2 },
            ..on(&straight, "NB-IoT, cut 20 s a minute", nb_iot.with_cuts(), Load::LongLog)
        },
        on(&straight, "NB-IoT", nb_iot, Load::Full),
        on(&proxied, "NB-IoT", nb_iot, Load::Quote),
        on(&straight, "LTE-M", lte_m, Load::Full),
        on(&proxied, "LTE-M", lte_m, Load::Full),
        on(&straight, "LTE-M, cut 20 s a minute", lte_m.with_cuts(), Load::Full),
        on(&proxied, "LTE-M, cut 20 s a minute", lte_m.with_cuts(), Load::Full),
        forgetful(&straight),
        forgetful(&proxied),
        Cell {
            link: "MTU 576",
            site: SiteSettings { mtu: 576, ..straight.site.clone() },
            load: Load::Full,
            ..straight.clone()
        },
        Cell {
            link: "LTE-M, cut for 2 intervals",
            script: Script::Cut { intervals: 2 },
            ..on(&straight, "", lte_m, Load::Quote)
        },
        Cell {
            link: "LTE-M, cut for 7 intervals",
            script: Script::Cut { intervals: 7 },
            ..on(&straight, "", lte_m, Load::Quote)
        },
    ]
}

/// The gateway first, the cloud's broker when the gateway is away, and back.
fn gateway() -> Vec<Cell> {
    let cell = path(Way::straight(Carrier::Mqtts));
    let site = SiteSettings { holes: vec![Hole::Gateway, Hole::Port(8883)], ..SiteSettings::default() };
    vec![Cell {
        path: "8883, two brokers".to_owned(),
        broker: "gateway, cloud",
        site,
        load: Load::Full,
        script: Script::Failover,
        ..cell
    }]
}
