package spool

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

// fillValue sets every field to something that is not zero, so that a field that a record forgets is noticed, whoever
// added it.
func fillValue(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+int64(*n), int64(*n)).UTC()))
		return
	case netip.AddrPort:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(*n))))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.Repeat("x", *n%7+1))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n%100 + 1))
	case reflect.Float64:
		v.SetFloat(float64(*n) / 8)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillValue(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fillValue(t, v.Index(i), n)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fillValue(t, v.Field(i), n)
		}
	default:
		t.Fatalf("a field of kind %s: teach the record and this test", v.Kind())
	}
}

func TestARecordKeepsEveryFieldOfAnEnvelope(t *testing.T) {
	n := 0
	m := &message{size: 12345, sum: 1 << 63, file: 7, seal: true, env: &mta.Envelope{}}
	fillValue(t, reflect.ValueOf(m.env).Elem(), &n)
	got, err := decodeMessage(m.encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("got\n%+v %+v, want\n%+v %+v", got, got.env, m, m.env)
	}
	empty := &message{env: &mta.Envelope{Rcpts: []mta.Recipient{}}}
	if got, err := decodeMessage(empty.encode()); err != nil || !reflect.DeepEqual(got, empty) {
		t.Errorf("got %+v %+v, %v", got, got.env, err)
	}
}

func TestARecordKeepsEveryFieldOfAProgress(t *testing.T) {
	env := testEnvelope("a@example.org", "b@example.net", "c@example.org")
	p := begin(env)
	p.rev, p.damaged = 1<<31, true
	at := time.Unix(1_700_000_000, 5).UTC()
	p.dests[1] = destProgress{dest: "example.net", due: at, attempts: 9, held: true}
	for i := range p.rcpts {
		p.rcpts[i] = rcptProgress{outcome: mta.Outcome(i + 2), primary: "mx:25", at: at, reply: mta.Reply{Code: 550, Enhanced: "5.1.1", Text: "no\nuser"}}
	}
	got, err := decodeProgress(p.encode(), env)
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("got\n%+v %v, want\n%+v", got, err, p)
	}
	if rcpt := reflect.TypeFor[mta.RcptStatus]().NumField(); rcpt != 6 {
		t.Errorf("RcptStatus has %d fields: teach the record", rcpt)
	}
	o, err := decodeOverride(encodeOverride(env.ID, p))
	if err != nil || o.id != env.ID || !reflect.DeepEqual(o.progress, p.encode()) {
		t.Errorf("override %+v %v", o, err)
	}
	if o, err = decodeOverride(encodeOverride(env.ID, nil)); err != nil || o.progress != nil {
		t.Errorf("override of an end %+v %v", o, err)
	}
}

func TestALaterRecordIsRefused(t *testing.T) {
	env := testEnvelope("a@example.org")
	m := (&message{env: env}).encode()
	m[0]++
	if _, err := decodeMessage(m); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("%v", err)
	}
	p := begin(env).encode()
	p[0]++
	if _, err := decodeProgress(p, env); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("%v", err)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	env := testEnvelope("a@example.org", "b@example.net")
	f.Add((&message{env: env, size: 10}).encode())
	env.Verdict = &mta.Verdict{Action: mta.Quarantine, Findings: []mta.Finding{{Name: "rspamd:reject", Text: "spam"}}}
	f.Add((&message{env: env, size: 10}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		again, err := decodeMessage(m.encode())
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%v: %+v is read back as %+v", err, m, again)
		}
	})
}

func FuzzDecodeProgress(f *testing.F) {
	env := testEnvelope("a@example.org", "b@example.net")
	f.Add(begin(env).encode())
	f.Add(encodeOverride(env.ID, begin(env)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeOverride(b); err != nil {
			_ = err // only that it ends
		}
		p, err := decodeProgress(b, env)
		if err != nil {
			return
		}
		if _, err := decodeProgress(p.encode(), env); err != nil {
			t.Errorf("%v", err)
		}
	})
}

func FuzzReadLog(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00aaaaaaaaaaaa\x40\x00\x0d\x05\x00m...."))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r := (logFile{b: b}).read("x"); r.end > int64(len(b)) && r.end > logHead || r.size > int64(len(b)) {
			t.Errorf("%+v of %d octets", r, len(b))
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	m := &message{size: 4096, env: testEnvelope("ann@example.org")}
	m.env.Peer.Addr = netip.MustParseAddrPort("192.0.2.10:40123")
	b.ReportMetric(float64(len(m.encode())), "octets")
	for b.Loop() {
		if _, err := decodeMessage(m.encode()); err != nil {
			b.Fatal(err)
		}
	}
}
