// Sample texts for each language, and the current settings as code to copy.

export const SAMPLES = {
  en: {
    Greeting: "Hello! This sentence was made a moment ago, on the machine that serves this page.",
    Numbers:
      "Your train leaves at 7:45 from platform 3. The ticket costs 12.50, and the journey takes " +
      "about 2 hours and 10 minutes.",
    Story:
      "The lighthouse keeper had not spoken to anyone for nine days. Each evening she climbed the " +
      "stairs, lit the lamp, and wrote down the weather. On the tenth day a small boat came out " +
      "of the fog. Nobody was rowing it.\n\nShe put on her coat and went down to the water. In " +
      "the boat lay a box, carefully tied with string, and on the box was her own name.",
    Dialogue:
      "[voice F2] Good evening. Is this seat taken?\n[voice M3] No, please sit down. Are you going " +
      "far?\n[voice F2] To the end of the line.\n[voice M3] Nobody has gone that far in years.",
  },
  ko: {
    Greeting: "안녕하세요! 이 문장은 방금 이 페이지를 보여 주는 컴퓨터에서 만들어졌습니다.",
    Numbers: "기차는 7시 45분에 3번 승강장에서 출발합니다. 요금은 12,500원이고 두 시간쯤 걸립니다.",
    Story:
      "등대지기는 아흐레 동안 아무와도 말하지 않았습니다. 저녁마다 계단을 올라 등불을 켜고 " +
      "날씨를 적었습니다. 열흘째 되는 날, 안개 속에서 작은 배 한 척이 나타났습니다. 노를 젓는 " +
      "사람은 없었습니다.",
    Dialogue:
      "[voice F2] 안녕하세요. 여기 자리 있나요?\n[voice M3] 아니요, 앉으세요. 멀리 가세요?\n" +
      "[voice F2] 종점까지 가요.",
  },
  es: {
    Greeting: "¡Hola! Esta frase se creó hace un momento en el ordenador que muestra esta página.",
    Numbers: "Su tren sale a las 7:45 del andén 3. El billete cuesta 12,50 y el viaje dura 2 horas.",
    Story:
      "La farera llevaba nueve días sin hablar con nadie. Cada tarde subía la escalera, encendía " +
      "la lámpara y anotaba el tiempo. Al décimo día salió de la niebla una barca pequeña. Nadie " +
      "remaba en ella.",
    Dialogue:
      "[voice F2] Buenas tardes. ¿Está libre este asiento?\n[voice M3] Sí, siéntese. ¿Va usted " +
      "lejos?\n[voice F2] Hasta el final de la línea.",
  },
  pt: {
    Greeting: "Olá! Esta frase foi criada agora mesmo no computador que mostra esta página.",
    Numbers: "O seu comboio parte às 7:45 da linha 3. O bilhete custa 12,50 e a viagem dura 2 horas.",
    Story:
      "A faroleira não falava com ninguém havia nove dias. Todas as tardes subia a escada, acendia " +
      "a lâmpada e anotava o tempo. No décimo dia, um pequeno barco saiu do nevoeiro. Ninguém " +
      "remava.",
    Dialogue:
      "[voice F2] Boa tarde. Este lugar está livre?\n[voice M3] Está, sente-se. Vai para " +
      "longe?\n[voice F2] Até ao fim da linha.",
  },
  fr: {
    Greeting: "Bonjour ! Cette phrase vient d'être créée sur la machine qui affiche cette page.",
    Numbers: "Votre train part à 7 h 45, voie 3. Le billet coûte 12,50 et le trajet dure 2 heures.",
    Story:
      "La gardienne du phare n'avait parlé à personne depuis neuf jours. Chaque soir, elle montait " +
      "l'escalier, allumait la lampe et notait le temps. Le dixième jour, une petite barque sortit " +
      "du brouillard. Personne ne ramait.",
    Dialogue:
      "[voice F2] Bonsoir. Cette place est libre ?\n[voice M3] Oui, asseyez-vous. Vous allez " +
      "loin ?\n[voice F2] Jusqu'au bout de la ligne.",
  },
};

/** The same sample in another language, or null when the text is the user's own. */
export function translateSample(text, language) {
  for (const samples of Object.values(SAMPLES)) {
    const name = Object.keys(samples).find((key) => samples[key] === text);
    if (name) return SAMPLES[language]?.[name] ?? null;
  }
  return null;
}

/** Code that asks this server for `body` as a WAV file; with a placeholder for a key, if it needs one. */
export const SNIPPETS = {
  curl: (origin, body, needsKey) => {
    const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
    return `curl --fail-with-body ${origin}/synthesize \\
  -H 'Content-Type: application/json' \\
${needsKey ? "  -H 'Authorization: Bearer KEY' \\\n" : ""}  -o speech.wav \\
  -d '${json}'`;
  },
  python: (origin, body, needsKey) => `import json
import urllib.request

body = ${JSON.stringify(body, null, 4)}
request = urllib.request.Request(
    "${origin}/synthesize",
    data=json.dumps(body).encode(),
    headers={"Content-Type": "application/json"${needsKey ? ', "Authorization": "Bearer KEY"' : ""}},
)
with urllib.request.urlopen(request) as response, open("speech.wav", "wb") as file:
    file.write(response.read())`,
  javascript: (origin, body, needsKey) => `const response = await fetch("${origin}/synthesize", {
  method: "POST",
  headers: { "Content-Type": "application/json"${needsKey ? ', Authorization: "Bearer KEY"' : ""} },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
if (!response.ok) throw new Error((await response.json()).detail);
new Audio(URL.createObjectURL(await response.blob())).play();`,
};
