package inbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
	"golang.org/x/sync/errgroup"
)

const (
	acmeRetry   = time.Hour // after a failure; Let's Encrypt allows five an hour, and autocert may use two of them
	acmeRefresh = time.Hour // how often a certificate that autocert renewed is picked up
)

// openACME prepares to get a certificate from an authority. Handshakes never wait for it: until there is one, and
// whenever it can't be renewed, they use what there is.
func openACME(cfg *Config, log *slog.Logger) (func(context.Context, *certificates) error, error) {
	client := &acme.Client{DirectoryURL: cfg.ACME.Directory}
	transport := &http.Transport{TLSClientConfig: &tls.Config{}, Proxy: http.ProxyFromEnvironment}
	if cfg.ACME.RootCAs != "" {
		pool, err := readPool(cfg.ACME.RootCAs)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	m := &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(filepath.Join(cfg.StateDir, "acme")),
		HostPolicy: autocert.HostWhitelist(cfg.Hostname),
		Client:     client,
		Email:      cfg.ACME.Email,
	}
	ln, err := net.Listen("tcp", cfg.ACME.Listen)
	if err != nil {
		return nil, fmt.Errorf("acme: %w", err)
	}
	web := &http.Server{
		Handler:     withoutPort(m.HTTPHandler(http.NotFoundHandler())),
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return func(ctx context.Context, c *certificates) error {
		g, ctx := errgroup.WithContext(ctx)
		client.HTTPClient = &http.Client{Timeout: time.Minute, Transport: boundTransport{ctx, transport}}
		defer transport.CloseIdleConnections()
		g.Go(func() error {
			if err := web.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("inbound: acme: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return web.Close()
		})
		g.Go(func() error { return obtain(ctx, m, cfg.Hostname, c) })
		return g.Wait()
	}, nil
}

// boundTransport ends requests when its context ends: autocert, which takes no context, must not delay a shutdown.
type boundTransport struct {
	ctx  context.Context
	next http.RoundTripper
}

func (t boundTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(t.ctx, cancel)
	done := func() {
		stop()
		cancel()
	}
	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		done()
		return nil, err
	}
	resp.Body = boundBody{resp.Body, done}
	return resp, nil
}

// boundBody keeps the request's context until the body was read.
type boundBody struct {
	io.ReadCloser
	done func()
}

func (b boundBody) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}

// withoutPort lets autocert see our name also where the authority, or a proxy before us, wrote it with a port.
func withoutPort(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host, _, err := net.SplitHostPort(r.Host); err == nil {
			r.Host = host
		}
		h.ServeHTTP(w, r)
	})
}

// obtain gets the certificate and picks up its successors, which autocert orders in good time.
func obtain(ctx context.Context, m *autocert.Manager, hostname string, c *certificates) error {
	hello := &tls.ClientHelloInfo{ // asks for an ECDSA certificate, which all who speak TLS 1.2 can verify
		ServerName:       hostname,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
	for {
		wait := acmeRefresh
		cert, err := m.GetCertificate(hello)
		switch {
		case err != nil:
			c.log.Error("no certificate from the ACME authority", "err", err)
			wait = acmeRetry
		case c.acme.Swap(cert) == nil:
			c.log.Info("certificate from the ACME authority", "until", cert.Leaf.NotAfter)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
