package peer

import (
	"errors"
	"net"
	"net/smtp"
	"os"
	"testing"
	"time"
)

func TestAPostfixTakesMailAndComesBack(t *testing.T) {
	p := NewPostfix(t, nil)
	for n := 1; n <= 2; n++ {
		p.Start()
		if err := smtp.SendMail(p.Addr, nil, "a@example.net", []string{"b@example.org"}, []byte("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatalf("%v\n%s", err, p.Log())
		}
		for deadline := time.Now().Add(10 * time.Second); p.Delivered() < n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nothing delivered\n%s", p.Log())
			}
		}
		p.Stop()
	}
}

func TestAFrozenPostfixConnectsAndSaysNothing(t *testing.T) {
	p := NewPostfix(t, nil)
	p.Start()
	p.Freeze()
	defer p.Thaw()
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d octets, %v; want silence", n, err)
	}
}
