package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/util/keyutil"
)

// authorityLifetime outlives the machine: an authority is never renewed, only what it signs is.
const authorityLifetime = 30 * 365 * 24 * time.Hour

// pki is the server's own certificates. A certificate and its key are one PEM file, so that replacing both is one
// rename and nobody can read half a pair.
type pki struct {
	dir      string
	lifetime time.Duration
	issued   time.Time
	// Two authorities, so that a serving certificate never passes as a client's.
	servers, clients tls.Certificate
	leaves           []leaf
}

// leaf is a certificate that is renewed while in use.
type leaf struct {
	name     string
	signer   *tls.Certificate
	template x509.Certificate
}

// openPKI loads the authorities and the service account key, making those that are missing. Leaf certificates are
// made by renew, at every start anew.
func openPKI(dir string, lifetime time.Duration, serverNames []string) (*pki, error) {
	if lifetime < time.Minute {
		return nil, fmt.Errorf("--certificate-lifetime %s: too short, at least 1m", lifetime)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &pki{dir: dir, lifetime: lifetime}
	var err error
	if p.servers, err = p.openAuthority("server-ca"); err != nil {
		return nil, err
	}
	if p.clients, err = p.openAuthority("client-ca"); err != nil {
		return nil, err
	}
	if _, err := os.Stat(p.pair("service-account")); errors.Is(err, os.ErrNotExist) {
		_, encoded, err := newKey()
		if err != nil {
			return nil, err
		}
		if err := writeFile(p.pair("service-account"), encoded, 0o600); err != nil {
			return nil, err
		}
	}
	server := x509.Certificate{Subject: pkix.Name{CommonName: userAgent}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range serverNames {
		if ip := net.ParseIP(name); ip != nil {
			server.IPAddresses = append(server.IPAddresses, ip)
		} else {
			server.DNSNames = append(server.DNSNames, name)
		}
	}
	client := func(user string, groups ...string) x509.Certificate {
		subject := pkix.Name{CommonName: user, Organization: groups}
		return x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	}
	p.leaves = []leaf{
		{"server", &p.servers, server},
		{"controller-manager", &p.clients, client("system:kube-controller-manager")},
		{"admin", &p.clients, client("vireo-admin", "system:masters")},
	}
	return p, nil
}

// pair is the file with a certificate and its key; certificate the one with an authority's certificate alone.
func (p *pki) pair(name string) string        { return filepath.Join(p.dir, name+".pem") }
func (p *pki) certificate(name string) string { return filepath.Join(p.dir, name+".crt") }

func (p *pki) openAuthority(name string) (tls.Certificate, error) {
	path := p.pair(name)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		template := x509.Certificate{
			Subject:               pkix.Name{CommonName: userAgent + " " + name},
			NotAfter:              time.Now().Add(authorityLifetime),
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
			IsCA:                  true,
			BasicConstraintsValid: true,
		}
		if err := issue(path, template, nil); err != nil {
			return tls.Certificate{}, err
		}
	}
	authority, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		return authority, fmt.Errorf("certificate authority %s: %w; restore the file from a copy", path, err)
	}
	return authority, writeFile(p.certificate(name), encode(authority.Leaf.Raw), 0o644)
}

// renew issues the leaf certificates. The API server and client-go notice the changed files themselves; connections
// made go on.
func (p *pki) renew() error {
	// Without the monotonic reading: a suspended machine's certificates age, too.
	now := time.Now().Round(0)
	for _, l := range p.leaves {
		l.template.NotAfter = now.Add(p.lifetime)
		l.template.KeyUsage = x509.KeyUsageDigitalSignature
		if err := issue(p.pair(l.name), l.template, l.signer); err != nil {
			return fmt.Errorf("certificate %s: %w", p.pair(l.name), err)
		}
	}
	p.issued = now
	return nil
}

// due says whether the leaf certificates are in the last third of their life.
func (p *pki) due() bool { return time.Now().After(p.issued.Add(p.lifetime * 2 / 3)) }

// issue makes a key and a certificate for it, signed by signer or else by itself, and writes both to path.
func issue(path string, template x509.Certificate, signer *tls.Certificate) error {
	key, encoded, err := newKey()
	if err != nil {
		return err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return err
	}
	// Clocks of clients may be a little behind.
	template.NotBefore = time.Now().Add(-time.Hour)
	if signer == nil {
		signer = &tls.Certificate{Leaf: &template, PrivateKey: key}
	}
	raw, err := x509.CreateCertificate(rand.Reader, &template, signer.Leaf, key.Public(), signer.PrivateKey)
	if err != nil {
		return err
	}
	return writeFile(path, append(encode(raw), encoded...), 0o600)
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := keyutil.MarshalPrivateKeyToPEM(key)
	return key, encoded, err
}

func encode(certificate []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
}

// serverNames is every name under which a client may expect this server.
func serverNames(bind net.IP, advertised []string) []string {
	names := append([]string{"localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", kubernetesServiceIP, bind.String()}, advertised...)
	if hostname, err := os.Hostname(); err == nil {
		names = append(names, hostname)
	}
	if addresses, err := net.InterfaceAddrs(); err == nil && bind.IsUnspecified() {
		for _, address := range addresses {
			if ip, _, err := net.ParseCIDR(address.String()); err == nil {
				names = append(names, ip.String())
			}
		}
	}
	return names
}
