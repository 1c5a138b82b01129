package inbound

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/pires/go-proxyproto"

	"understudy/internal/mta"
)

// proxyTimeout is how long a balancer may take for its header, which it sends with the connection.
const proxyTimeout = 10 * time.Second

// greet lets a client in and greets it. It runs on the connection's own goroutine, so that a slow client keeps
// nobody else waiting.
func (w *wire) greet() {
	if w.listener.proxied(w.remote.Addr()) && !w.readProxyHeader() {
		w.srv.metrics.refused.WithLabelValues("proxy").Inc()
		return
	}
	if w.leave == nil && !w.enter() {
		return
	}
	if w.srv.deps.Connected != nil {
		w.srv.deps.Connected(w.remote.Addr())
	}
	if !w.pregreet() {
		w.srv.metrics.refused.WithLabelValues("pregreet").Inc()
		return
	}
	w.srv.metrics.accepted.Inc()
	w.out = appendReply(w.out, mta.NewReply(220, "", "%s ESMTP Understudy", w.srv.cfg.Hostname))
}

// enter takes the client's place at the gate.
func (w *wire) enter() bool {
	leave, refusal := w.srv.admit(w.remote)
	w.leave = leave
	if refusal != nil {
		w.end(refusal)
		return false
	}
	return true
}

// readProxyHeader learns from the balancer who the client is. Without a header there is no conversation: to go on
// would give every client the balancer's address, and so its trust.
func (w *wire) readProxyHeader() bool {
	w.raw.SetReadDeadline(time.Now().Add(proxyTimeout))
	br := bufio.NewReaderSize(w.raw, smallBuffer)
	header, err := proxyproto.Read(br)
	if err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, proxyproto.ErrNoProxyProtocol) || br.Buffered() > 0 {
			w.log.Warn("no PROXY header from a balancer", "peer", w.remote, "err", err)
		}
		w.ended = true
		return false
	}
	left, _ := br.Peek(br.Buffered()) // can't fail: they are there
	w.in = make([]byte, max(smallBuffer, len(left)))
	w.w = copy(w.in, left)
	if header.Command.IsLocal() { // the balancer's own health check
		return true
	}
	source, dest, ok := header.TCPAddrs()
	if !ok {
		w.log.Warn("PROXY header without TCP addresses", "peer", w.remote)
		w.ended = true
		return false
	}
	w.remote, w.local = addrPort(source), addrPort(dest)
	return true
}

// pregreet begins the greeting of a client that we don't know, and waits. Who talks now does not listen.
func (w *wire) pregreet() bool {
	cfg := &w.srv.cfg.Pregreet
	a := w.remote.Addr()
	if cfg.Wait == 0 || w.srv.trusts(a) || w.srv.gate.isKnown(a) {
		return true
	}
	w.out = append(w.out, "220-"+w.srv.cfg.Hostname+" ESMTP Understudy\r\n"...)
	w.flush()
	if w.talks(cfg.Wait) {
		w.early = true
		w.log.Info("talked before the greeting", "peer", w.remote)
		if cfg.Action == PregreetRefuse {
			w.end(mta.NewReply(521, "5.5.1", "you spoke before you were greeted"))
			return false
		}
		return true
	}
	if w.ended {
		return false
	}
	w.srv.gate.know(a)
	return true
}

// talks tells whether the client says anything within d.
func (w *wire) talks(d time.Duration) bool {
	if w.ended {
		return false
	}
	if w.w > w.r { // came with the PROXY header
		return true
	}
	w.makeRoom(false)
	w.raw.SetReadDeadline(time.Now().Add(d))
	n, err := w.conn.Read(w.in[w.w:])
	w.w += n
	if n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.lost(err)
	}
	return n > 0
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
