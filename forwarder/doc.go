// Package forwarder hands mail over to the primaries: what is spooled, and, while they are up, what senders bring.
//
// What it promises:
//   - Each recipient's end is what the primary said of it. 2yz is delivered; 4yz waits for the message's own next try; 5yz
//     is quarantined, with the reply, where an operator sees it.
//   - What goes wrong with a host (no connection, TLS, banner, EHLO, 421, a cut session) is the primary's health and no
//     message's attempt. What a primary says for good against our session as a whole defers and alerts.
//   - A message may reach a primary twice, where a session was cut after its content was written or a settlement could not
//     be stored; never zero times.
//   - Mail moves as soon as the gate of a primary opens: oldest first, destinations by turns, a first session alone until
//     one message was taken, then more while all goes well and while more of them bring more.
//   - What has waited is judged again before it is sent, if Deps say so; a message is held for that, never dropped.
//   - An inline transaction tells apart what was not handed over for sure, what may have been, and what the primary
//     answered. A session that a primary was told a client for never serves another client.
//
// Goroutines: Run's own (wake-ups; it resolves routes and starts them), one settler (writes outcomes in batches), one
// keeper (leases of what takes long), and for each route that has work: its own, which starts sessions, a loader, which
// claims mail and reads it ahead of the wire, those who judge mail again, and up to the limit of sessions. A route's end
// waits for its sessions, Run's end for all. The pools of inline sessions have one that looks after them, and one for each
// session that waits; transactions run on their callers'.
package forwarder
