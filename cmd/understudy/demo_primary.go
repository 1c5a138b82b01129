package main

import (
	"context"
	"io"
	"log"
	"net"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// demoPrimary is a mail server that takes everything, remembers when, and can go away and come back.
type demoPrimary struct {
	addr string // the same over every absence
	srv  *smtp.Server

	mu  sync.Mutex
	got []time.Time // when each message was taken
}

// newDemoPrimary picks a free port; nothing listens there until start.
func newDemoPrimary() (*demoPrimary, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return &demoPrimary{addr: l.Addr().String()}, nil
}

func (p *demoPrimary) start() error {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.srv = smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return demoSession{p}, nil }))
	p.srv.Domain = "mx1.example.org"
	p.srv.ErrorLog = log.New(io.Discard, "", 0)
	go p.srv.Serve(l) // ends with stop
	return nil
}

// stop closes the port and every connection.
func (p *demoPrimary) stop() {
	if p.srv != nil {
		p.srv.Close()
	}
}

func (p *demoPrimary) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.got)
}

// await waits for the n-th message and tells when it was taken.
func (p *demoPrimary) await(ctx context.Context, n int) (time.Time, error) {
	for p.count() < n {
		if err := pause(ctx, lookEvery); err != nil {
			return time.Time{}, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got[n-1], nil
}

// demoSession takes whatever comes.
type demoSession struct{ p *demoPrimary }

func (demoSession) Mail(string, *smtp.MailOptions) error { return nil }
func (demoSession) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (demoSession) Reset()                               {}
func (demoSession) Logout() error                        { return nil }

func (s demoSession) Data(r io.Reader) error {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.got = append(s.p.got, time.Now())
	return nil
}
