# SPDX-License-Identifier: MIT
"""What bpf/sockmap.c has to know of the running kernel: offsets of fields, a flag and a function, from its BTF."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kecho.kernel import cache
from kecho.kernel.btf import Btf, BtfError

# The fields, by the names that bpf/sockmap.c gives them.
_FIELDS = {
    "FLAGS": "sock_common.skc_flags",
    "SOCKET": "sock.sk_socket",
    "DST": "sock.sk_dst_cache",
    "DST_DEV": "dst_entry.dev",
    "DEV_IFINDEX": "net_device.ifindex",
    "RMEM_ALLOC": "sock.sk_backlog.rmem_alloc",
    "WMEM_QUEUED": "sock.sk_wmem_queued",
    "SNDBUF": "sock.sk_sndbuf",
    "RCV_NXT": "tcp_sock.rcv_nxt",
    "COPIED_SEQ": "tcp_sock.copied_seq",
    "SND_UNA": "tcp_sock.snd_una",
    "WRITE_SEQ": "tcp_sock.write_seq",
    "MAX_WINDOW": "tcp_sock.max_window",
}


class Fields(NamedTuple):
    """`defines` are settings of bpf/sockmap.c. `sendmsg` is the type of tcp_bpf_sendmsg(), 0 if it has none."""

    defines: dict[str, int]
    sendmsg: int


def fields() -> Fields:
    """Those of the running kernel. Raises OSError if it has no BTF, BtfError if bpf/sockmap.c cannot run on it.

    They are kept, since reading the BTF of a whole kernel takes about 0.1 s.
    """
    key = cache.key("fields", Path(__file__).read_text())
    if kept := cache.load(key):
        return Fields(*kept)
    found = _fields(Btf.vmlinux())
    cache.store(key, found)
    return found


def _fields(btf: Btf) -> Fields:
    # The verifier lets a program read cb[0] to cb[4] of an skb; TCP keeps the sequence number there.
    if btf.offset("tcp_skb_cb.seq") != btf.offset("sk_skb_cb.data"):
        raise BtfError("an skb's cb[0] is not its sequence number on this kernel")
    offsets = {f"KECHO_OFF_{name}": btf.offset(path) for name, path in _FIELDS.items()}
    return Fields(
        {**offsets, "KECHO_SOCK_ZEROCOPY": btf.enumerator("sock_flags.SOCK_ZEROCOPY")}, btf.function("tcp_bpf_sendmsg")
    )
