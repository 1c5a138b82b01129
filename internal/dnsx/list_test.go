package dnsx_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
)

func TestAnswersOfListsHoldBetweenAMinuteAndAnHour(t *testing.T) {
	tests := []struct {
		name, record string
		within       time.Duration // still kept
		after        time.Duration // asked again
	}{
		{"a TTL of seconds", "5 A 127.0.0.2", 59 * time.Second, 61 * time.Second},
		{"a TTL of days", "172800 A 127.0.0.2", 59 * time.Minute, 61 * time.Minute},
		{"a TTL between", "600 A 127.0.0.2", 9 * time.Minute, 11 * time.Minute},
		{"not listed, for half a minute", "", 59 * time.Second, 61 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const name = "99.2.0.192.l.example"
				z := dnstest.Zones{"l.example": {"A 192.0.2.1"}}
				if tt.record != "" {
					z[name] = []string{tt.record}
				}
				srv := dnstest.NewMemory(z)
				cfg := dnsx.DefaultConfig()
				cfg.Resolvers, cfg.Exchange = []string{"192.0.2.53"}, srv.Exchange
				r, err := dnsx.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				ask := func(asked int) {
					t.Helper()
					addrs, err := r.LookupList(t.Context(), name)
					if (tt.record == "") != errors.Is(err, dnsx.ErrNotFound) || (tt.record != "") != (len(addrs) == 1) {
						t.Fatalf("got %v, %v", addrs, err)
					}
					if n := srv.Asked(name, "A"); n != asked || srv.Asked(name, "AAAA") != 0 {
						t.Errorf("asked %d times, want %d", n, asked)
					}
				}
				ask(1)
				time.Sleep(tt.within)
				ask(1)
				time.Sleep(tt.after - tt.within)
				ask(2)
			})
		})
	}
}
