package inbound

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy/internal/testkit/peer"
)

// loopbackDNS answers that every name is at 127.0.0.1.
func loopbackDNS(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // pebble asks over TCP
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: ln, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 127.0.0.1")
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		s.Shutdown()
		<-done
	})
	return ln.Addr().String()
}

// pebble runs Let's Encrypt's test server. Its program is built from the module
// github.com/letsencrypt/pebble/v2/cmd/pebble, and named by UNDERSTUDY_PEBBLE.
func pebble(t *testing.T, httpPort string) (directory, roots string, stop func()) {
	t.Helper()
	program := os.Getenv("UNDERSTUDY_PEBBLE")
	if program == "" && os.Getenv("UNDERSTUDY_PEERS") != "" {
		t.Fatal("UNDERSTUDY_PEERS is set, so UNDERSTUDY_PEBBLE must name the pebble program: . .ci/peers builds it")
	}
	if program == "" {
		t.Skip("needs an ACME server: set UNDERSTUDY_PEBBLE to the pebble program")
	}
	a, dir := newAuthority(t), t.TempDir()
	cert, key := a.issue(t, "localhost", x509.ExtKeyUsageServerAuth)
	write(t, filepath.Join(dir, "cert.pem"), cert)
	write(t, filepath.Join(dir, "key.pem"), key)
	roots = filepath.Join(dir, "ca.pem")
	write(t, roots, a.pem)
	addr := peer.FreeAddr(t)
	conf := fmt.Sprintf(`{"pebble": {"listenAddress": %q, "managementListenAddress": %q, "certificate": %q, "privateKey": %q, "httpPort": %s, "tlsPort": 1}}`,
		addr, peer.FreeAddr(t), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), httpPort)
	write(t, filepath.Join(dir, "conf.json"), []byte(conf))
	cmd := exec.Command(program, "-config", filepath.Join(dir, "conf.json"), "-dnsserver", loopbackDNS(t))
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	var log safeBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := true
	stop = func() {
		if running {
			running = false
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return "https://localhost:" + port(addr) + "/dir", roots, stop
		}
		if time.Now().After(deadline) {
			t.Fatalf("pebble does not listen\n%s", log.String())
		}
	}
}

// issuer is who signed what a server shows in STARTTLS.
func issuer(t *testing.T, addr string) string {
	t.Helper()
	c := dial(t, addr)
	c.want("220")
	c.startTLS(&tls.Config{InsecureSkipVerify: true})
	defer c.conn.Close()
	return c.conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Issuer.CommonName
}

func TestCertificateComesFromAnACMEAuthority(t *testing.T) {
	web := peer.FreeAddr(t)
	directory, roots, stopPebble := pebble(t, port(web))
	cfg := testConfig(t)
	cfg.StateDir, cfg.Trusted = t.TempDir(), DefaultConfig().Trusted
	cfg.ACME = ACME{Enabled: true, Listen: web, Directory: directory, RootCAs: roots, Email: "postmaster@example.org"}
	r := start(t, cfg, nil)
	if got := issuer(t, r.addr()); got != "mx2.example.org" && !strings.HasPrefix(got, "Pebble") {
		t.Errorf("until there is a certificate, ours is shown; got one of %s", got)
	}
	awaitIssuer(t, r)
	r.end(t)

	stopPebble() // after a restart the certificate is still there, without the authority
	awaitIssuer(t, start(t, cfg, nil))
}

func awaitIssuer(t *testing.T, r *running) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got := issuer(t, r.addr())
		if strings.HasPrefix(got, "Pebble") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no certificate from the authority, still of %s\n%s", got, r.log)
		}
	}
}

// An authority that does not answer delays no shutdown.
func TestSilentACMEAuthorityDelaysNoShutdown(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg := testConfig(t)
	cfg.StateDir = t.TempDir()
	cfg.ACME = ACME{Enabled: true, Listen: "127.0.0.1:0", Directory: "https://" + silent.Addr().String() + "/dir"}
	r := start(t, cfg, nil)
	c, err := silent.Accept() // it has asked
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begun := time.Now()
	r.end(t)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("shutdown took %s", took)
	}
}
