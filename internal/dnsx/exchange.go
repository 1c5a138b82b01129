package dnsx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// payload is the largest UDP answer that we ask for: it passes every path unfragmented (DNS flag day 2020).
const payload = 1232

// exchangeNet is the Exchange over sockets. Each question leaves from a port of its own.
func exchangeNet(ctx context.Context, m *dns.Msg, network, server string) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: c, UDPSize: payload}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		r, err := conn.ReadMsg()
		if r != nil && r.Id == m.Id && (err == nil || r.Truncated) {
			return r, nil
		}
		// On UDP anyone can send us a packet: only one with our number counts, and the limit of time ends the wait.
		if _, broken := errors.AsType[net.Error](err); err != nil && (broken || network == "tcp") {
			return nil, err
		}
	}
}

// ask puts the question to one resolver: UDP, then TCP if the answer was cut, and without EDNS if it does not know it.
func (r *Resolver) ask(ctx context.Context, q question, server netip.AddrPort) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.qtype)
	m.AuthenticatedData = true // we would like to know (RFC 6840, 5.7)
	m.SetEdns0(payload, false)
	in, err := r.askOnce(ctx, m, "udp", server)
	if err == nil && in.Rcode == dns.RcodeFormatError {
		m.Extra = nil
		in, err = r.askOnce(ctx, m, "udp", server)
	}
	if err == nil && in.Truncated {
		in, err = r.askOnce(ctx, m, "tcp", server)
	}
	if err != nil {
		return nil, err
	}
	if !r.cfg.TrustAD && !server.Addr().IsLoopback() {
		in.AuthenticatedData = false
	}
	return in, nil
}

func (r *Resolver) askOnce(ctx context.Context, m *dns.Msg, network string, server netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	m.Id = dns.Id()
	in, err := r.exchange(ctx, m, network, server.String())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", network, err)
	}
	return in, nil
}
