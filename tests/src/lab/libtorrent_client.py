"""One libtorrent client, driven by lines on its standard input.

  make FILE TORRENT PIECE_BYTES TRACKER   writes a torrent of a file
  run TORRENT FOLDER ADDRESS ROLE         ROLE: seed, super-seed, peer

`run` says "ready", waits for "go", says "done" when all is there, and tells on "report" what it
has received and sent, as JSON, until its input ends. It keeps seeding until then.

libtorrent's settings are its own but for discovery, which is left to the tracker and to what peers
tell each other, and with "tcp" as a last argument for uTP, which is left out.
"""

import json
import os
import sys
import threading

import libtorrent as lt


def make(file, torrent, piece_bytes, tracker):
    storage = lt.file_storage()
    lt.add_files(storage, file)
    creation = lt.create_torrent(storage, int(piece_bytes), lt.create_torrent.v1_only)
    creation.add_tracker(tracker)
    lt.set_piece_hashes(creation, os.path.dirname(file))
    with open(torrent, "wb") as out:
        out.write(lt.bencode(creation.generate()))


def settings(address, tcp_only):
    chosen = {
        "listen_interfaces": address + ":6881",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "alert_mask": int(lt.alert.category_t.status_notification),
    }
    if tcp_only:
        chosen.update({"enable_outgoing_utp": False, "enable_incoming_utp": False})
    return chosen


def say(text):
    print(text, flush=True)


def run(torrent, folder, address, role, transport="both"):
    session = lt.session(settings(address, transport == "tcp"))
    wanted = lt.add_torrent_params()
    wanted.ti = lt.torrent_info(torrent)
    wanted.save_path = folder
    wanted.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    if role != "peer":
        wanted.flags |= lt.torrent_flags.seed_mode
    if role == "super-seed":
        wanted.flags |= lt.torrent_flags.super_seeding
    say("ready")
    if sys.stdin.readline().strip() != "go":
        return
    handle = session.add_torrent(wanted)

    def watch():
        while True:
            session.wait_for_alert(100)
            for alert in session.pop_alerts():
                if isinstance(alert, lt.torrent_finished_alert):
                    say("done")

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "report":
            status = handle.status()
            say(json.dumps({
                "received": status.total_payload_download,
                "sent": status.total_payload_upload,
                "redundant": status.total_redundant_bytes,
                "peers": status.num_peers,
            }))
    os._exit(0)


{"make": make, "run": run}[sys.argv[1]](*sys.argv[2:])
