-- Permissions for the default prefix keylime/v1, for the SQL realm of HiveMQ's Enterprise Security Extension.
-- Written from HiveMQ's documentation of that schema (PostgreSQL). ${mqtt-clientid} must have been checked against the
-- certificate by the pipeline: see README.md.

insert into public.permissions
    (id, topic, publish_allowed, subscribe_allowed, qos_0_allowed, qos_1_allowed, qos_2_allowed,
     retained_msgs_allowed, shared_sub_allowed, shared_group)
values
    (101, 'keylime/v1/${mqtt-clientid}/evidence',   true,  false, true, true, false, false, false, ''),
    (102, 'keylime/v1/${mqtt-clientid}/evidence/+', true,  false, true, true, false, false, false, ''),
    (103, 'keylime/v1/${mqtt-clientid}/presence',   true,  false, true, true, false, true,  false, ''),
    (104, 'keylime/v1/${mqtt-clientid}/challenge',  false, true,  true, true, false, false, false, ''),
    (105, 'keylime/v1-bridge/+',                    false, true,  true, true, false, true,  false, ''),
    (201, 'keylime/v1/+/evidence',                  false, true,  true, true, false, false, true,  ''),
    (202, 'keylime/v1/+/evidence/+',                false, true,  true, true, false, false, false, ''),
    (203, 'keylime/v1/+/presence',                  false, true,  true, true, false, true,  false, ''),
    (204, 'keylime/v1/+/challenge',                 true,  false, true, true, false, false, false, ''),
    (205, 'keylime/v1/+/result',                    true,  false, true, true, false, true,  false, ''),
    (206, 'keylime/v1-bridge/+',                    true,  false, true, true, false, true,  false, ''),
    (301, 'keylime/v1/+/result',                    false, true,  true, true, false, true,  false, ''),
    (302, 'keylime/v1-bridge/+',                    false, true,  true, true, false, true,  false, '');

insert into public.roles (id, name, description)
values
    (100, 'keylime-device',        'says its own evidence and presence, hears its own challenge and whether a bridge serves'),
    (200, 'keylime-bridge',        'hears evidence and presence, says challenges, results and its status'),
    (300, 'keylime-relying-party', 'reads results');

insert into public.role_permissions (role, permission)
values
    (100, 101), (100, 102), (100, 103), (100, 104), (100, 105),
    (200, 201), (200, 202), (200, 203), (200, 204), (200, 205), (200, 206),
    (300, 301), (300, 302);
