package mta

import (
	"net/netip"
	"time"
)

// Peer is the client that gave us a message, as it was at receipt. The primary is told of it when the message is
// handed over, so that its rules see the true client.
type Peer struct {
	Addr  netip.AddrPort `json:"addr"`            // after a PROXY header, the address that it names
	Local netip.AddrPort `json:"local"`           // the address that it reached us at
	Name  string         `json:"name,omitempty"`  // reverse name, only if forward-confirmed; else empty
	Helo  string         `json:"helo,omitempty"`  // as sent; never write it out without neutering
	Proto string         `json:"proto,omitempty"` // the `with` keyword: SMTP, ESMTP, ESMTPS, UTF8SMTPS, … (RFC 3848, 6531)
	TLS   *TLS           `json:"tls,omitempty"`   // nil in clear
	Early bool           `json:"early,omitempty"` // it talked before our greeting was complete, as no mail server does
}

// TLS is what a handshake agreed on.
type TLS struct {
	Version    string `json:"version"` // "TLS 1.3"
	Cipher     string `json:"cipher"`
	ServerName string `json:"sni,omitempty"`
}

// Notify is a set of DSN conditions (RFC 3461, 4.1). The zero value is "not given", which means failure and delay.
type Notify uint8

const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Recipient is one forward-path of a message.
type Recipient struct {
	Addr   Path   `json:"addr"`             // where it goes: a bare <postmaster> has its domain by now
	ORcpt  string `json:"orcpt,omitempty"`  // "rfc822;user@example.org", the type and the decoded address (RFC 3461, 4.2)
	Notify Notify `json:"notify,omitempty"` // which reports were asked for
	Dest   string `json:"dest"`             // the mail domain that it is delivered under, in the form of Domain
}

// Params are the MAIL parameters that must reach the primary unchanged.
type Params struct {
	Body       string `json:"body,omitempty"` // 7BIT or 8BITMIME; empty if not given
	SMTPUTF8   bool   `json:"smtputf8,omitempty"`
	RequireTLS bool   `json:"requiretls,omitempty"`
	Ret        string `json:"ret,omitempty"`   // FULL or HDRS
	EnvID      string `json:"envid,omitempty"` // decoded
}

// Envelope is all that we know of a message but its content.
type Envelope struct {
	ID       ID          `json:"id"`
	Received time.Time   `json:"received"`
	Node     string      `json:"node,omitempty"` // who accepted it
	Peer     Peer        `json:"peer"`
	From     Path        `json:"from"`
	Params   Params      `json:"params"`
	Rcpts    []Recipient `json:"rcpts"`
	Due      time.Time   `json:"due,omitzero"`     // first try; zero is now
	Expires  time.Time   `json:"expires,omitzero"` // when it leaves the queue for quarantine; zero is never
	// Verdict is what our own policy made of it at receipt; nil: nobody looked.
	Verdict *Verdict `json:"verdict,omitempty"`
}

// Dests lists the destinations of the recipients, each once, in the order of the envelope.
func (e *Envelope) Dests() []string {
	var dests []string
next:
	for i := range e.Rcpts {
		for _, d := range dests {
			if d == e.Rcpts[i].Dest {
				continue next
			}
		}
		dests = append(dests, e.Rcpts[i].Dest)
	}
	return dests
}
