package dnsx_test

import (
	"errors"
	"testing"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
)

func TestTLSARecordsAndWhetherTheyCount(t *testing.T) {
	const record = "TLSA 3 1 1 aabb"
	s := dnstest.New(t, dnstest.Zones{
		"_25._tcp.mx1.signed.test": {"AUTHENTIC", record},
		"_25._tcp.mx1.plain.test":  {record},
		"_25._tcp.mx1.broken.test": {"SERVFAIL"},
		"mx1.none.test":            {"A 192.0.2.1"},
	})
	r := newResolver(t, nil, s.Addr())
	for _, tt := range []struct {
		host      string
		n         int
		authentic bool
		notFound  bool
		fails     bool
	}{
		{"mx1.signed.test", 1, true, false, false},
		{"mx1.plain.test", 1, false, false, false},
		{"mx1.none.test", 0, false, true, true},
		{"mx1.broken.test", 0, false, false, true},
	} {
		records, authentic, err := r.LookupTLSA(t.Context(), tt.host, 25)
		if len(records) != tt.n || authentic != tt.authentic || (err != nil) != tt.fails || errors.Is(err, dnsx.ErrNotFound) != tt.notFound {
			t.Errorf("%s: %v, authentic %v, %v", tt.host, records, authentic, err)
		}
		if tt.n == 1 && (records[0].Usage != 3 || records[0].Selector != 1 || records[0].Matching != 1 || string(records[0].Data) != "\xaa\xbb") {
			t.Errorf("%s: %+v", tt.host, records[0])
		}
	}
}
