package inbound

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// listener is one socket with its switches. As a net.Listener it gives go-smtp wires, and only those of clients that
// the gate let in.
type listener struct {
	net.Listener
	srv    *Server
	hidden map[string]bool
	proxy  []netip.Prefix
}

// Listen binds all listeners and prepares the certificates.
func (s *Server) Listen() error {
	certs, err := openCertificates(&s.cfg, s.log)
	if err != nil {
		return fmt.Errorf("inbound: %w", err)
	}
	s.certs = certs
	if err := sweepUnnamed(s.cfg.TempDir); err != nil {
		return fmt.Errorf("inbound: temporary folder: %w", err)
	}
	var all []*listener
	for i := range s.cfg.Listen {
		sockets, err := s.bind(&s.cfg.Listen[i])
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			return fmt.Errorf("inbound: listen on %s: %w", s.cfg.Listen[i].Address, err)
		}
		all = append(all, sockets...)
	}
	s.listeners = all
	return nil
}

// bind opens one entry of the configuration; systemd may have passed several sockets for it.
func (s *Server) bind(c *Listener) ([]*listener, error) {
	hidden := map[string]bool{}
	for _, k := range c.Hide {
		hidden[strings.ToUpper(k)] = true
	}
	sockets, err := s.sockets(c.Address)
	if err != nil {
		return nil, err
	}
	var list []*listener
	for _, l := range sockets {
		list = append(list, &listener{Listener: l, srv: s, hidden: hidden, proxy: c.ProxyFrom})
	}
	return list, nil
}

func (s *Server) sockets(address string) ([]net.Listener, error) {
	name, ok := systemdName(address)
	if !ok {
		l, err := net.Listen("tcp", address)
		return []net.Listener{l}, err
	}
	var list []net.Listener
	for n, passed := range s.deps.Sockets {
		if name == "" || n == name {
			list = append(list, passed...)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("systemd passed no such socket")
	}
	return list, nil
}

// Addrs are the addresses that we listen on, after Listen.
func (s *Server) Addrs() []net.Addr {
	var list []net.Addr
	for _, l := range s.listeners {
		list = append(list, l.Addr())
	}
	return list
}

// proxied tells whether an address is that of a balancer.
func (l *listener) proxied(a netip.Addr) bool { return contains(l.proxy, a) }

// Accept implements net.Listener. Floods end here, before they cost a goroutine; clients behind a balancer are judged
// when it has said who they are.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		w := &wire{
			srv: l.srv, listener: l, log: l.srv.log, raw: c, conn: c,
			remote: addrPort(c.RemoteAddr()), local: addrPort(c.LocalAddr()),
		}
		if !l.proxied(w.remote.Addr()) {
			leave, refusal := l.srv.admit(w.remote)
			if refusal != nil {
				c.SetWriteDeadline(time.Now().Add(time.Second)) // a new socket's buffer is empty: it does not wait
				c.Write(appendReply(nil, withContact(refusal, l.srv.cfg.Contact)))
				c.Close()
				continue
			}
			w.leave = leave
		}
		l.srv.remember(w)
		return w, nil
	}
}

// firstSocket is the first file descriptor that systemd passes (sd_listen_fds(3)).
const firstSocket = 3

// SystemdSockets takes over the sockets that systemd passed to this process, by the names that their units give them
// (FileDescriptorName). getenv reads the environment; without LISTEN_FDS for this process there are none.
func SystemdSockets(pid int, getenv func(string) string) (map[string][]net.Listener, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return nil, fmt.Errorf("inbound: LISTEN_FDS %q is no number", getenv("LISTEN_FDS"))
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	sockets := map[string][]net.Listener{}
	for i := range n {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		f := os.NewFile(uintptr(firstSocket+i), name)
		l, err := net.FileListener(f) // works on a copy, which is closed on exec
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("inbound: socket %d (%s) from systemd: %w", firstSocket+i, name, err)
		}
		sockets[name] = append(sockets[name], l)
	}
	return sockets, nil
}
