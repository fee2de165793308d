"""Words that WhatsApp writes into exports, in the languages of its users.

Most of what WhatsApp writes by itself is recognised without them, by the invisible mark before it (see `whatsapp`);
they serve the exports that lack the mark.
"""

from __future__ import annotations

import re

# Before noon and after noon, in lower case and without spaces, dots and marks.
AM = frozenset(
    [
        "am",
        "ص",
        "午前",
        "上午",
        "凌晨",
        "清晨",
        "早上",
        "오전",
        "पू",
        "पूर्वाह्न",
        "πμ",
        "sa",
        "öö",
        "vorm",
        "fm",
        "kyk",
        "ap",
        "ng",
        "gm",
        "pg",
        "قظ",
        "قبلازظهر",
        "সকাল",
        "पूर्व",
        "முற்பகல்",
        "eparadites",
    ]
)
PM = frozenset(
    [
        "pm",
        "م",
        "午後",
        "下午",
        "中午",
        "晚上",
        "오후",
        "अप",
        "अपराह्न",
        "μμ",
        "ch",
        "ös",
        "nachm",
        "em",
        "ip",
        "mu",
        "ptg",
        "بظ",
        "بعدازظهر",
        "অপরাহ্ণ",
        "பிற்பகல்",
        "epasdites",
    ]
)

# Words after a time of 24 hours.
CLOCK = frozenset(["ч", "uhr", "น"])

# The whole text in place of a file that was left out, without its angle brackets and marks, in lower case.
MEDIA_OMITTED = frozenset(
    """
media omitted|medien ausgeschlossen|medien weggelassen|multimedia omitido|archivo omitido|mídia oculta|arquivo de mídia oculto
mídia omitida|ficheiro não revelado|médias omis|fichier omis|media omessi|media omesso|media weggelaten|pominięto multimedia
pominięto plik|без медиафайлов|медиафайл пропущен|файл пропущен|medya dahil edilmedi|تم استبعاد الوسائط|تم استبعاد ملف الوسائط
המדיה לא נכללה|המדיה הושמטה|मीडिया के बिना|मीडिया शामिल नहीं है|media tidak disertakan|media tak disertakan|media utelatt|media utelämnad
media utelämnat|media udeladt|mediefil udeladt|mediatiedosto jätettiin pois|media jätetty pois|média vynechána|média vynechané|hiányzó média
média kihagyva|fișier media omis|media omisă|παραλείφθηκαν πολυμέσα|μέσο παραλείφθηκε|bỏ qua tệp media|省略多媒体文件|省略多媒體檔案|未包含媒體檔案
メディアは含まれていません|미디어를 포함하지 않음|미디어 파일 생략됨|file multimedia omis|رسانه حذف شد|без медіафайлів|пропущено медіафайл
""".strip()
    .replace("\n", "|")
    .split("|")
)

# Ends of "image omitted", "Bild weggelassen" and the like, which iOS writes after a mark.
OMITTED_ENDS = re.compile(
    r"(?:omitted|weggelassen|ausgeschlossen|omitid[oa]s?|ocult(?:ad)?[oa]s?|omis(?:e|es)?|absent(?:e|es)?|omess[oaie]|weggelaten|"
    r"pominięt[yoae]|опущен[оаы]?|пропущен[оаы]?|не добавлен[оаы]?|dahil edilmedi|utelatt|utelämna[dt]|udeladt|jätetty pois|"
    r"vynechán[oay]?|vynechan[éýá]|kihagyva|omisă?|παραλείφθηκ\w+|לא נכלל\w*|הושמט\w*|tidak disertakan|tak disertakan|"
    r"غير متضم\w+|لم يتم تضمين\w*|محذوف\w*|مستبعد\w*|已忽略|已略過|已略去|省略|未包含|bị bỏ qua|含まれていません|생략됨?|생략|छोड़\w*|शामिल नहीं है)\.?$",
    re.IGNORECASE,
)

# After the name of a file that is in the export: "IMG-20240312-WA0001.jpg (file attached)".
FILE_ATTACHED = (
    r"file attached|datei angehängt|archivo adjunto|arquivo anexado|ficheiro anexado|fichier joint|file allegato|"
    r"bestand bijgevoegd|plik w załączniku|załączony plik|файл добавлен|файл прикреплен|dosya ekli|ملف مرفق|"
    r"קובץ מצורף|फ़ाइल संलग्न|file terlampir|fil vedlagt|bifogad fil|fil vedhæftet|tiedosto liitetty|soubor byl přiložen|"
    r"csatolt fájl|fișier atașat|συνημμένο αρχείο|文件附件|檔案附件|添付ファイル|파일 첨부됨|файл додано"
)
ATTACHED = re.compile(
    rf"^\u200e?(?P<file>[^\n/\\]{{1,255}}\.\w{{1,8}}) \((?:{FILE_ATTACHED})\)$", re.IGNORECASE
)

# The whole text of a deleted message, in lower case, without the final stop and marks.
DELETED = frozenset(
    """
this message was deleted|you deleted this message|this message was deleted by admin
diese nachricht wurde gelöscht|du hast diese nachricht gelöscht
se eliminó este mensaje|este mensaje fue eliminado|eliminaste este mensaje|este mensaje ha sido eliminado
mensagem apagada|essa mensagem foi apagada|esta mensagem foi apagada|você apagou esta mensagem|eliminou esta mensagem
ce message a été supprimé|vous avez supprimé ce message
questo messaggio è stato eliminato|hai eliminato questo messaggio
dit bericht is verwijderd|u hebt dit bericht verwijderd|je hebt dit bericht verwijderd
ta wiadomość została usunięta|usunięto tę wiadomość|usunąłeś tę wiadomość
данное сообщение удалено|это сообщение удалено|сообщение удалено|вы удалили данное сообщение
bu mesaj silindi|bu mesajı sildiniz
تم حذف هذه الرسالة|حذفت هذه الرسالة|لقد حذفت هذه الرسالة
הודעה זו נמחקה|מחקת הודעה זו|ההודעה הזו נמחקה
यह संदेश हटा दिया गया है|यह संदेश हटा दिया गया|आपने यह संदेश हटा दिया|यह मैसेज हटा दिया गया
pesan ini telah dihapus|anda telah menghapus pesan ini
det här meddelandet raderades|du raderade det här meddelandet
denne meldingen ble slettet|denne besked blev slettet|du slettede denne besked
tämä viesti poistettiin|poistit tämän viestin
tato zpráva byla odstraněna|ez az üzenet törölve lett|acest mesaj a fost șters
αυτό το μήνυμα διαγράφηκε|διαγράψατε αυτό το μήνυμα|це повідомлення видалено
此消息已删除|此訊息已刪除|你删除了这条消息|このメッセージは削除されました|삭제된 메시지입니다|이 메시지는 삭제되었습니다
""".strip()
    .replace("\n", "|")
    .split("|")
)

# At the end of an edited message, when the mark before it is missing.
EDITED = re.compile(
    r"<(?:this message was edited|diese nachricht wurde bearbeitet|se editó este mensaje|este mensaje fue editado|"
    r"mensagem editada|esta mensagem foi editada|ce message a été modifié|questo messaggio è stato modificato|"
    r"dit bericht is bewerkt|ta wiadomość została edytowana|сообщение изменено|данное сообщение изменено|bu mesaj düzenlendi|"
    r"تم تعديل هذه الرسالة|הודעה זו נערכה|यह संदेश बदला गया है|pesan ini diedit|det här meddelandet redigerades|"
    r"denne besked blev redigeret|tämä viesti on muokattu|此消息已编辑|此訊息已編輯|このメッセージは編集されました|"
    r"수정된 메시지입니다)\.?>$",
    re.IGNORECASE,
)

POLL = re.compile(
    r"^\u200e?(?:POLL|UMFRAGE|ENCUESTA|ENQUETE|SONDAGEM|SONDAGE|SONDAGGIO|PEILING|ANKIETA|ОПРОС|ОПИТУВАННЯ|ANKET|استطلاع"
    r"(?: رأي)?|סקר|पोल|POLLING|OMRÖSTNING|AFSTEMNING|KYSELY|ANKETA|SZAVAZÁS|SONDAJ|ΔΗΜΟΣΚΟΠΗΣΗ|投票|アンケート|설문|투표) ?[:：]\s*\n",
    re.IGNORECASE,
)

# Lines without a sender that have a colon all the same: changes of a name, which they quote.
SUBJECT_CHANGED = re.compile(
    r"changed the (?:subject|group (?:name|description))|created (?:the )?group|hat (?:den betreff|die gruppe|das thema)|"
    r"cambió (?:el asunto|el nombre)|creó el grupo|mudou o nome|criou o grupo|a changé (?:le sujet|le nom)|a créé le groupe|"
    r"ha (?:cambiato l'oggetto|creato il gruppo|modificato)|heeft (?:het onderwerp|de groep)|zmienił|utworzył|"
    r"изменил[аи]? |создал[аи]? группу|grubunu oluşturdu|konusunu|غيّر|غيَّر|أنشأ|更改|建立|创建了|変更|作成|변경|만들었",
    re.IGNORECASE,
)
